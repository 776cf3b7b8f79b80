"""Structure sets, presentation states and key object selections before readers and validators of other people.

dciodvfy and dcentvfy (dicom3tools), dcmpschk, dcmp2pgm and dsr2html (DCMTK), highdicom, plastimatch.
"""

import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicomai.findings import Detection, Findings, Region, Shape
from dicomai.outputs import Sources, build, encode
from dicomai.study import Instance
from tests import results, synthetic
from tests.acceptance.orthanc import require
from tests.integration.test_outputs_validators import nrrd

SCRIPTS = Path(sysconfig.get_path("scripts"))
SHAPE = (6, 12, 14)
OUTPUTS = ("rtstruct", "gsps", "kos")
# dciodvfy wants Laterality wherever the part of the body may be a paired one; the images do not say it.
UNKNOWN_SIDE = "Error - Missing attribute Type 2C Conditional Element=<Laterality> Module=<GeneralSeries>"


def odd_uids() -> list[FileDataset]:
    """Make images whose UIDs have no known root."""
    made = synthetic.series(shape=SHAPE, study_uid="0.0.0.0.2.8811.2", series_uid="0.0.0.0.3.8811.2")
    for index, ds in enumerate(made):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"0.0.0.0.1.8811.2.{index}")
    return made


CASES: dict[str, Callable[[], list[FileDataset]]] = {
    "no body part, rescaled one by one": lambda: synthetic.series(
        shape=SHAPE,
        WindowCenter="40",
        WindowWidth=lambda z: str(400 + z % 2),
        RescaleSlope=lambda z: f"{0.1 + z / 7:.6f}",
        BodyPartExamined=None,
    ),
    "multi-frame": lambda: [synthetic.enhanced(shape=SHAPE, orientation="coronal")],
    "odd UIDs": odd_uids,
    "Japanese": lambda: synthetic.series(
        shape=SHAPE,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        TimezoneOffsetFromUTC="+0900",
        BodyPartExamined="KNEE",
        Laterality="L",
    ),
}


def read(images: list[FileDataset], folder: Path) -> Sources:
    synthetic.write(images, folder)
    paths = sorted(folder.glob("*.dcm"))
    return results.sources(
        [Instance.read(lambda path=path: path.open("rb"), path.name) for path in paths]  # type: ignore[misc]
    )


def findings(shape: tuple[int, ...] = SHAPE) -> Findings:
    """Make an organ with a hole, and a lesion that touches it and the edge."""
    organ, lesion = results.ball(shape), np.zeros(shape, np.uint8)
    organ[3, 4:6, 8:10] = 0
    lesion[2:4, 0:5, 9:14] = 2
    found = results.findings(organ, lesion, segments=[results.segment(1, "Organ"), results.segment(2, "Lesion")])
    region = Region(Shape.ELLIPSOID, (-37.0, -27.0, 23.0), ((2.0, 0, 0), (0, 1.5, 0), (0, 0, 2.5)))
    nodule = Detection(Code("27925004", "SCT", "Nodule"), results.ABNORMALITY, results.INTRACRANIAL, region, 0.8)
    return replace(found, detections=(nodule,))


def write(output: str, found: Findings, sources: Sources, folder: Path) -> Path:
    ds = build(output, found, sources, results.provenance(outputs=OUTPUTS))
    assert ds is not None
    path = folder / f"{output}.dcm"
    path.write_bytes(encode(ds))
    return path


def run(command: Path | str, *arguments: object) -> str:
    done = subprocess.run(
        [str(command), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_validators_find_no_fault(case: str, tmp_path: Path) -> None:
    sources = read(CASES[case](), tmp_path / "images")
    paths = [write(output, findings(), sources, tmp_path) for output in OUTPUTS]
    for path in paths:
        said = {line for line in run(SCRIPTS / "dciodvfy", path).splitlines() if line.startswith("Error")}
        if case == "odd UIDs":  # the sources' own, which a result has to bear as they are
            said = {line for line in said if '"0.0.0.0.' not in line and "invalid data values" not in line}
        if case.startswith("no body part") and path.stem == "gsps":
            said.discard(UNKNOWN_SIDE)
        assert said == set(), path.name
    together = run(SCRIPTS / "dcentvfy", *paths, *(tmp_path / "images").glob("*.dcm"))
    # The study that a structure set refers to is no instance: its SOP class is retired, its UID the study's.
    study = f"Error - Missing SOPInstanceUID that was referenced - {sources.header.StudyInstanceUID} for file"
    assert not [line for line in together.splitlines() if "Error" in line and not line.startswith(study)]
    checked = run("/usr/bin/dcmpschk", tmp_path / "gsps.dcm")
    assert "Test passed" in checked
    assert "E:" not in checked


def test_highdicom_reads_the_key_object_selection(tmp_path: Path) -> None:
    sources = read(CASES["multi-frame"](), tmp_path / "images")
    path = write("kos", findings(), sources, tmp_path)
    document = hd.ko.KeyObjectSelectionDocument.from_dataset(pydicom.dcmread(path))
    named = [item.referenced_sop_instance_uid for item in document.content.get_references()]
    assert set(named) == {one.sop_instance_uid for one in sources.instances}
    assert document.resolve_reference(named[0])[1] == sources.header.SeriesInstanceUID
    assert "AI, unverified" in run("/usr/bin/dsr2html", path)


def table(_: int) -> list[Dataset]:
    """Make a VOI LUT that brightens less and less."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [256, -1024, 16])
    item.add_new("LUTData", "OW", np.asarray([65535 * (i / 255) ** 0.5 for i in range(256)], "<u2").tobytes())
    return [item]


@pytest.mark.parametrize("kind", ["window", "inverted", "table"])
def test_dcmtk_shows_grey_values_as_the_presentation_state_says(kind: str, tmp_path: Path) -> None:
    array = np.linspace(0, 255, 6 * 12 * 14).astype(np.uint16).reshape(SHAPE)
    inverted: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1"} if kind == "inverted" else {}
    window: dict[str, Any] = {"WindowCenter": "-896", "WindowWidth": "257"}
    if kind == "table":
        window = {"WindowCenter": None, "WindowWidth": None, "VOILUTSequence": table}
    images = synthetic.series(shape=SHAPE, array=array, **window, **inverted)
    sources = read(images, tmp_path / "images")
    state = write("gsps", findings(), sources, tmp_path)
    assert not [line for line in run(SCRIPTS / "dciodvfy", state).splitlines() if line.startswith("Error")]
    by_uid = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in (tmp_path / "images").glob("*.dcm")}
    image = by_uid[sources.frames[3].instance.sop_instance_uid]
    grey = {}
    for name, options in {"with": ("-p", state), "without": ()}.items():
        assert "E:" not in run("/usr/bin/dcmp2pgm", *options, image, tmp_path / f"{name}.pgm")
        grey[name] = np.asarray(Image.open(tmp_path / f"{name}.pgm")).astype(int)
    np.testing.assert_array_equal(grey["with"], grey["without"])  # as a viewer shows the image by itself
    # The state's values are perceptually linear, the monitor's not: what is brighter stays so, and ends are ends.
    order = np.argsort(array[3].ravel(), kind="stable")
    steps = np.diff(grey["with"].ravel()[order])
    assert (steps <= 0 if inverted else steps >= 0).all()
    assert np.ptp(grey["with"]) > 25


@pytest.mark.parametrize(
    "kind",
    [
        {"orientation": "sagittal", "spacing": (3.0, 1.7, 0.6), "reverse": True},
        {"orientation": "oblique", "spacing": (3.0, 0.6, 1.7)},
    ],
    ids=lambda kind: str(kind["orientation"]),
)
def test_plastimatch_fills_the_contours_to_the_mask(kind: dict[str, Any], tmp_path: Path) -> None:
    sources = read(synthetic.series(shape=SHAPE, **kind), tmp_path / "images")
    found = findings()
    path = write("rtstruct", found, sources, tmp_path)
    folder = tmp_path / "filled"
    run(
        require("plastimatch", "plastimatch"), "convert", "--input", path, "--referenced-ct", tmp_path / "images",
        "--output-prefix", folder, "--prefix-format", "nrrd",
    )  # fmt: skip
    for name, layer in zip(("Organ", "Lesion"), found.layers, strict=True):
        voxels, _ = nrrd(folder / f"{name}.nrrd")
        np.testing.assert_array_equal(voxels.transpose(2, 1, 0) > 0, layer.labels > 0)
