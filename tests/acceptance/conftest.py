"""Fixtures of the acceptance tests: real weights, real studies."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of brain_extraction, pulled once: the folder `weights` of a storage."""
    folder = tmp_path_factory.mktemp("weights")
    config = folder / "dicomai.toml"
    config.write_text(f"[node]\nstorage = {json.dumps(str(folder / 'storage'))}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dicomai", "models", "pull", "brain_extraction", "--config", str(config)],
        check=False, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "storage" / "weights"


@pytest.fixture(scope="session")
def seven_tesla(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The 384 files of the T1 series at 7 T."""
    folder = tmp_path_factory.mktemp("7t")
    with tarfile.open(shared / "data" / "mr_brain_t1_7t.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    files = tuple(sorted(folder.rglob("*.dcm")))
    assert len(files) == 384
    return files
