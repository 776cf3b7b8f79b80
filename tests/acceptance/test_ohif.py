"""What a radiologist sees of results in OHIF: built and sent by dicomai, kept by Orthanc, drawn by Chromium.

The CT has bright shapes where its segments are, so that a flip or a shift shows: in the viewer's voxels, and in what it
draws. The MR series is a scanner's, oblique, and has a hundred segments.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser
from pydicom.dataset import Dataset

from dicomai import words
from dicomai.config import DicomDestination
from dicomai.destinations import DimseDestination, Outgoing
from dicomai.findings import Findings, Layer, Measurement, Outcome, Segment
from dicomai.outputs import Sources, build, encode, priors
from dicomai.study import Instance
from tests import results, synthetic
from tests.acceptance import ohif
from tests.acceptance.orthanc import Orthanc, orthanc

pytestmark = pytest.mark.timeout(240)

SHAPE = (24, 96, 128)
SPACING = (3.0, 0.9, 0.6)
NAMED = (("Liver", (221, 130, 101)), ("Spleen", (157, 108, 162)), ("Corner", (0, 151, 206)), ("Lesion", (200, 30, 40)))


@dataclass(frozen=True)
class Sent:
    """A study as it lies in the archive, and what its results have to show."""

    uid: str
    findings: Findings
    sources: Sources
    results: dict[str, Dataset]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(one for layer in self.findings.layers for one in layer.segments)

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """Where a segment is, (z, y, x)."""
        (layer,) = (layer for layer in self.findings.layers if segment in layer.segments)
        return np.asarray(layer.labels == segment.number)

    def masks(self) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """Where segments are, (y, x), by the image's SOPInstanceUID and the segment's number."""
        planes = [frame.instance.sop_instance_uid for frame in self.sources.frames]
        return {
            (planes[z], one.number): plane
            for one in self.segments
            for z, plane in enumerate(self.mask(one))
            if plane.any()
        }


def shapes() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two layers: an ellipsoid off the middle, a box and a box in a corner; and a box that lies in the ellipsoid.

    Slice 12 has them all; none of its mirror images is the same.
    """
    z, y, x = np.indices(SHAPE)
    organs, lesions = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    organs[((z - 12) / 9) ** 2 + ((y - 40) / 24) ** 2 + ((x - 74) / 34) ** 2 < 1] = 1
    organs[6:20, 70:90, 16:50] = 2
    organs[:14, :14, :22] = 3
    lesions[10:15, 30:38, 80:96] = 4
    return organs, lesions


def hundred(shape: Sequence[int]) -> NDArray[np.uint8]:
    """A hundred boxes, each in its own place, through a few slices each."""
    labels = np.zeros(shape, np.uint8)
    side = min(shape[1:]) // 11
    for number in range(100):
        y, x = side // 2 + number // 10 * side, side // 2 + number % 10 * side
        labels[number % 10 : number % 10 + 5, y : y + side - 3, x : x + side - 5] = number + 1
    return labels


def findings(*layers: tuple[NDArray[np.uint8], tuple[Segment, ...]]) -> Findings:
    """Say of each segment its volume."""
    measured = tuple(
        Measurement(results.VOLUME, cm3(labels == one.number), results.CM3, one)
        for labels, segments in layers
        for one in segments
    )
    return Findings(tuple(Layer(*layer) for layer in layers), measured, Outcome.FINDINGS)


def cm3(mask: NDArray[np.bool_]) -> float:
    """The volume of a mask on the CT's grid."""
    return float(np.count_nonzero(mask) * np.prod(SPACING) / 1000)


def earlier(said: Findings, sources: Sources) -> priors.Prior:
    """Make the report of an earlier study, in which all volumes were 1 cm3, and read it."""
    findings = replace(said, measurements=tuple(replace(one, value=1.0) for one in said.measurements))
    ds = build("sr", findings, sources, results.provenance(work_digest="earlier"))
    assert ds is not None
    ds.StudyInstanceUID = "1.2.3.4"
    return priors.read(ds, date(2025, 11, 3), date(2026, 2, 1))


def deliver(pacs: Orthanc, images: Sequence[Instance], said: Findings, outputs: tuple[str, ...]) -> Sent:
    """Build the results and hand them over by C-STORE, as the node does."""
    sources = results.sources(images)
    provenance = results.provenance(
        work_digest=str(sources.header.StudyInstanceUID),
        outputs=outputs,
        series_numbers=frozenset({int(sources.header.SeriesNumber)}),
        prior=earlier(said, sources) if "sr" in outputs else None,
    )
    built = {output: build(output, said, sources, provenance) for output in outputs}
    made = {output: ds for output, ds in built.items() if ds is not None}
    assert made.keys() == set(outputs)
    outgoing = [Outgoing(ds.SOPClassUID, ds.SOPInstanceUID, partial(io.BytesIO, encode(ds))) for ds in made.values()]
    settings = DicomDestination(
        type="dicom", name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.dicom_port
    )
    answers: list[tuple[Outgoing, int, str]] = []
    DimseDestination(settings, calling_ae="DICOMAI", timeout=60).send(outgoing, lambda *answer: answers.append(answer))
    assert answers == [(one, 0x0000, "") for one in outgoing]
    return Sent(str(sources.header.StudyInstanceUID), said, sources, made)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture(scope="module")
def ct(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A synthetic CT with bright shapes, voxels that are not square, slices numbered from the far end."""
    organs, lesions = shapes()
    stored = np.where(organs > 0, 1200, 824).astype(np.uint16) + synthetic.pattern(SHAPE) % 40
    images = synthetic.series(array=stored, spacing=SPACING, reverse=True, WindowCenter="0", WindowWidth="600")
    pacs.upload(*synthetic.write(images, tmp_path_factory.mktemp("ct")))
    segments = tuple(results.segment(n, label, color=color) for n, (label, color) in enumerate(NAMED, 1))
    said = findings((organs, segments[:3]), (lesions, segments[3:]))
    return deliver(pacs, synthetic.instances(images), said, ("seg", "sr", "keyimage"))


@pytest.fixture(scope="module")
def mr(pacs: Orthanc, demo_study: tuple[Path, ...]) -> Sent:
    """A scanner's MR series, with a hundred segments."""
    pacs.upload(*demo_study)
    images = [Instance.read(lambda path=path: path.open("rb"), path.name) for path in demo_study]  # type: ignore[misc]
    header = images[0].header
    labels = hundred((len(images), int(header.Rows), int(header.Columns)))
    segments = tuple(results.segment(n, f"Part {n}", color=(55 + n, 255 - 2 * n, 2 * n)) for n in range(1, 101))
    return deliver(pacs, images, findings((labels, segments)), ("seg",))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with ohif.browser() as started:
        yield started


@pytest.fixture(scope="module", params=ohif.VERSIONS)
def viewer(request: pytest.FixtureRequest, pacs: Orthanc, chromium: Browser) -> Iterator[ohif.Viewer]:
    """Each version in turn."""
    with ohif.serving(request.param, pacs.dicomweb) as url:
        shown = ohif.Viewer(chromium, url)
        yield shown
        shown.close()


@pytest.fixture(scope="module")
def overlaid(viewer: ohif.Viewer, ct: Sent) -> ohif.Viewer:
    """The CT with its segmentation over it."""
    viewer.open(ct.uid, "CT")
    viewer.show("SEG")
    viewer.wait_for_segments(len(ct.segments))
    return viewer


def is_same(one: dict[tuple[str, int], NDArray[np.bool_]], other: dict[tuple[str, int], NDArray[np.bool_]]) -> bool:
    """Whether two overlays are the same, voxel by voxel."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def test_segments_are_listed_in_their_colours(overlaid: ohif.Viewer, ct: Sent) -> None:
    listed = overlaid.segments()
    assert [(one.number, one.label) for one in listed] == [(one.number, one.label) for one in ct.segments]
    for one, described in zip(listed, ct.segments, strict=True):  # through CIELab and back (PS3.3 C.10.7.1.1)
        assert np.abs(np.subtract(one.color, described.color)).max() <= 2, one.label
    text = overlaid.panel()
    assert all(one.label in text for one in ct.segments), text


def test_the_viewers_voxels_are_the_mask(overlaid: ohif.Viewer, ct: Sent) -> None:
    assert is_same(overlaid.masks(), ct.masks())


def test_the_overlay_is_drawn_where_the_shapes_are(overlaid: ohif.Viewer, ct: Sent) -> None:
    areas = ct.mask(ct.segments[0]).sum(axis=(1, 2))
    uid = ct.sources.frames[int(np.argmax(areas))].instance.sop_instance_uid
    drawn = overlaid.picture(uid).astype(int)
    plain = overlaid.picture(without_overlay=True).astype(int)
    bright = plain.min(axis=2) > 150
    colored = np.abs(drawn - plain).max(axis=2) > 12
    assert overlap(bright, colored) >= 0.95
    for one in ct.findings.layers[0].segments:  # outlines have the whole colour, unless they lie on another segment
        pixels = np.count_nonzero(np.abs(drawn - np.array(one.color)).max(axis=2) < 25)
        assert pixels > 100, one.label


def test_the_report_shows_its_numbers_with_units(overlaid: ohif.Viewer, ct: Sent) -> None:
    overlaid.show("SR")
    text = overlaid.text()
    for one in ct.segments:
        volume = float(f"{cm3(ct.mask(one)):.6g}")
        assert f"Volume: {volume} cm3" in text
        now = words.amount(volume, results.CM3)
        assert f"{one.label}: Volume {now} on 2026-02-01; 1 cm3 on 2025-11-03 (" in text
    assert "not verified by a person" in text


def test_the_key_image_is_shown_as_it_is(overlaid: ohif.Viewer, ct: Sent) -> None:
    overlaid.show("OT")
    drawn = overlaid.picture().astype(float)
    picture = Image.fromarray(ct.results["keyimage"].pixel_array)
    scale = min(drawn.shape[1] / picture.width, drawn.shape[0] / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    left, top = (drawn.shape[1] - size[0]) // 2, (drawn.shape[0] - size[1]) // 2
    expected = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(drawn[top : top + size[1], left : left + size[0]] - expected).mean() < 5


def test_a_hundred_segments_open_on_a_scanners_series(viewer: ohif.Viewer, mr: Sent) -> None:
    viewer.open(mr.uid, "MR")
    viewer.show("SEG")
    viewer.wait_for_segments(100)
    assert [one.label for one in viewer.segments()] == [one.label for one in mr.segments]
    assert is_same(viewer.masks(), mr.masks())
