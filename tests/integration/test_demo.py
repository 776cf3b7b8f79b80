"""`dicomai demo` as a newcomer has it: from nothing to a result, and away again without a trace."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
import torch
from PIL import Image
from rich.console import Console

from dicomai import bundle, demo, weights
from dicomai.demo.steps import Steps
from dicomai.errors import ConfigurationError
from tests.dimse import is_listening

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the weights of the packaged model, as an earlier demo leaves it."""
    folder = tmp_path_factory.mktemp("storage")
    weights.pull(bundle.find("brain_extraction", bundle.packaged()), folder)
    return folder


def start(folder: Path, storage: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start the demo in a folder, without a configuration file."""
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("DICOMAI_")}
    return subprocess.Popen(
        [sys.executable, "-m", "dicomai", "demo", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "DICOMAI_NODE__STORAGE": str(storage), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ports(said: str) -> list[int]:
    return [int(port) for port in re.findall(r"port (\d+)", said)]


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what the demo says, up to the line that has a text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it never said '{text}': {said}")


@pytest.mark.slow
class TestDemo:
    def test_the_whole_way(self, tmp_path: Path, storage: Path) -> None:
        began = time.monotonic()
        said, complaints = start(tmp_path, storage).communicate(timeout=170)
        assert complaints == ""
        assert time.monotonic() - began < 90
        out = tmp_path / "demo-output"
        # The words are those of the objects that the PACS received.
        assert "20 MR images sent by C-STORE" in said
        assert "SEG and SR accepted by the PACS" in said
        assert "SEG and SR accepted by the folder" in said
        assert "Segment 1: Intracranial structure (128319008, SCT) on 19 slices" in said
        volume = re.search(r"Intracranial structure: volume (\d+) cm3", said)
        assert volume is not None
        assert int(volume[1]) == pytest.approx(1290, rel=0.03)
        assert "not verified by a person" in said
        assert "was validated for T1-weighted MR of adults" in said
        received = {path.relative_to(out / "pacs"): path.read_bytes() for path in (out / "pacs").rglob("*.dcm")}
        assert sorted(str(pydicom.dcmread(out / "pacs" / path).Modality) for path in received) == ["SEG", "SR"]
        written = {path.relative_to(out / "folder"): path.read_bytes() for path in (out / "folder").rglob("*.dcm")}
        assert written.keys() == received.keys()
        with Image.open(out / "overlay.png") as picture:
            colors = picture.convert("RGB").getcolors(1 << 20)
        assert any(color == (230, 90, 70) and count > 500 for count, color in colors or ()), "no outline is drawn"
        # All is stopped, and nothing of the way is left but the results and the weights.
        assert [port for port in ports(said) if is_listening(port)] == []
        assert "node stopped" in (out / "node.log").read_text().splitlines()[-1]
        assert [path.name for path in storage.iterdir()] == ["weights"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_it_leaves_nothing_running(self, tmp_path: Path, storage: Path, number: signal.Signals) -> None:
        process = start(tmp_path, storage, "--out", "here")
        said = wait_for(process, "answers on port")
        assert len(ports(said)) == 2
        assert all(is_listening(port) for port in ports(said))
        process.send_signal(number)
        rest, complaints = process.communicate(timeout=90)
        assert process.returncode == 130
        assert complaints == ""
        assert "The node stopped" in rest
        assert [port for port in ports(said) if is_listening(port)] == []
        assert "node stopped" in (tmp_path / "here" / "node.log").read_text().splitlines()[-1]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_work_that_comes_to_nothing_is_a_sentence(self, tmp_path: Path, storage: Path) -> None:
        process = start(tmp_path, storage, DICOMAI_WORKER__DEVICE="cuda")
        said, complaints = process.communicate(timeout=120)
        assert process.returncode == 1
        assert complaints.count("\n") == 1
        assert complaints.startswith("The inference came to nothing: worker.device is 'cuda' and PyTorch sees no GPU")
        assert "failed" in said
        assert "cm3" not in said
        assert [port for port in ports(said) if is_listening(port)] == []

    def test_without_weights_and_without_an_index_it_says_so(self, tmp_path: Path) -> None:
        process = start(tmp_path, tmp_path / "empty", PIP_NO_INDEX="1")
        said, complaints = process.communicate(timeout=60)
        assert process.returncode == 1
        assert complaints.count("\n") == 1
        assert "pip could not download deepbet==1.0.2" in complaints
        assert "Downloading the weights" in said


class TestOut:
    def test_a_folder_with_other_files_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "pacs").mkdir()
        (tmp_path / "pacs" / "thesis.txt").write_text("years of work")
        with pytest.raises(ConfigurationError, match="holds other files"):
            demo._prepare(tmp_path)
        assert (tmp_path / "pacs" / "thesis.txt").read_text() == "years of work"

    def test_what_an_earlier_demo_left_is_replaced_and_nothing_else(self, tmp_path: Path) -> None:
        demo._prepare(tmp_path / "out")
        (tmp_path / "out" / "pacs").mkdir()
        (tmp_path / "out" / "pacs" / "old.dcm").touch()
        (tmp_path / "out" / "notes.txt").touch()
        demo._prepare(tmp_path / "out")
        assert not (tmp_path / "out" / "pacs").exists()
        assert (tmp_path / "out" / "notes.txt").exists()


class TestSteps:
    def test_elsewhere_than_on_a_terminal_each_step_is_a_line(self) -> None:
        screen = Console(file=io.StringIO(), width=200)
        with contextlib.suppress(KeyError), Steps(screen) as steps:
            with steps.step("Doing one thing") as step:
                step.sentence = "One thing is done"
            steps.begin("Doing another")
            raise KeyError
        lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert [re.sub(r"\d+\.\d s", "0.0 s", line) for line in lines] == [
            "done      0.0 s  One thing is done",
            "failed    0.0 s  Doing another",
        ]

    def test_on_a_terminal_progress_is_seen(self) -> None:
        screen = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
        with Steps(screen) as steps:
            step = steps.begin("Analysis")
            step.fraction = 0.5
        assert re.search(r"Analysis  ━{24} 50%", screen.file.getvalue())  # type: ignore[attr-defined]
