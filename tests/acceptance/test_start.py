"""Quick to answer: the receiver alone, from the start of its process to its first C-ECHO."""

import os
import time
from pathlib import Path

import pytest

from tests.acceptance.node import Node, node
from tests.acceptance.tools import run_dcmtk

WITHIN_SECONDS = 2.0


def seconds_until_it_answers(one: Node) -> float:
    """Start the receiver, and ask by DCMTK's echoscu until it answers."""
    began = time.monotonic()
    one.start("--only", "receiver", wait=False)
    while run_dcmtk("echoscu", "-aec", "DICOMAI", "127.0.0.1", str(one.port)).returncode != 0:
        assert time.monotonic() - began < 60, one.log
        time.sleep(0.02)
    return time.monotonic() - began


def seconds_at_work(one: Node) -> float:
    """CPU time of its processes: what the wall clock would show if nobody else were at work on this machine."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in one.processes()]
    return sum(int(ticks) for stat in stats for ticks in stat[11:13]) / os.sysconf("SC_CLK_TCK")


def test_the_receiver_answers_within_two_seconds_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMAI_RECEIVER__PROCESSES", "1")  # the others are started when the first one answers
    took: list[tuple[float, float]] = []
    for number in range(4):  # the fastest counts: others may be busy on this machine too
        with node(tmp_path / str(number)) as one:
            waited = seconds_until_it_answers(one)
            took.append((waited, seconds_at_work(one)))
            one.stop()
        if waited < WITHIN_SECONDS:
            return
    assert os.getloadavg()[0] > (os.cpu_count() or 1), f"nobody else was busy: {took}"
    assert min(work for _, work in took) < WITHIN_SECONDS, took


def test_no_process_of_a_receiver_has_torch_in_it(tmp_path: Path) -> None:
    with node(tmp_path / "node") as one:
        seconds_until_it_answers(one)
        processes = one.processes()
        assert one.receivers() <= set(processes)
        assert one.receivers()
        assert len(processes) >= 2, "parent and receiver"
        loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in processes}
        assert "libpython" in "".join(loaded.values()) or "python" in "".join(loaded.values())
        for maps in loaded.values():
            assert "libtorch" not in maps
            assert "site-packages/torch/" not in maps
        one.stop()


def test_the_port_is_free_when_an_orderly_stop_is_over(tmp_path: Path) -> None:
    with node(tmp_path / "node") as one:
        one.start("--only", "receiver")
        assert one.receivers()
        one.stop()
        assert run_dcmtk("echoscu", "-aec", "DICOMAI", "127.0.0.1", str(one.port)).returncode != 0
        one.start("--only", "receiver")
        assert run_dcmtk("echoscu", "-aec", "DICOMAI", "127.0.0.1", str(one.port)).returncode == 0
        one.stop()
