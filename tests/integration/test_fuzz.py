"""A short run of `make fuzz`, and that it finds what it is to find."""

import os
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.__main__ import Findings, fuzz, in_process, replay

INPUTS = int(os.environ.get("FUZZ_INPUTS", "3000"))
SEED = int(os.environ.get("SEED", "1"))

pytestmark = pytest.mark.timeout(180 + INPUTS // 100)


class Unforeseen(Exception):  # noqa: N818  it is one
    """Nothing that anybody reckons with."""


def test_nothing_comes_of_hostile_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings(tmp_path / "findings")
    (tmp_path / "node").mkdir()
    with in_process(tmp_path / "node") as targets:
        assert fuzz(targets, INPUTS, SEED, findings) >= 0.9 * INPUTS
    assert len(findings) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("target", "broken"),
    [
        ("commands", "dicomai.receiver.commands._uid"),
        ("stream", "dicomai.receiver.stream._Message.fragments"),
        ("headers", "dicomai.header._inflated"),
        ("bodies", "dicomai.console.multipart._Scanner.at_end"),
        ("instances", "dicomai.intake._refuse_stray"),
    ],
)
def test_a_fault_is_found_and_found_again_from_its_file(
    tmp_path: Path, target: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unforeseen

    (tmp_path / "node").mkdir()
    with in_process(tmp_path / "node") as targets:
        chosen = [one for one in targets if one.name == target]
        findings = Findings(tmp_path / "findings")
        with monkeypatch.context() as patch:
            patch.setattr(broken, fail)
            fuzz(chosen, round(100 / chosen[0].share), SEED, findings)
        assert len(findings) >= 1
        kept = sorted((tmp_path / "findings").iterdir())
        again = Findings(tmp_path / "again")
        replay(kept[0], targets, again)
        assert len(again) == 0, "it is mended, and still found"
        with monkeypatch.context() as patch:
            patch.setattr(broken, fail)
            replay(kept[0], targets, again)
        assert len(again) == 1


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    with in_process(tmp_path) as targets:
        for target in targets:
            first, second, other = (target.make(Random(seed)) for seed in ("1 x", "1 x", "2 x"))
            assert first == second != other
