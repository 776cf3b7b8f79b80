"""Key images: the right slices, nothing flipped, contours on the edge of the mask, the mark and the numbers."""

import importlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from scipy.ndimage import binary_dilation, binary_erosion

from dicomai import render, words
from dicomai.config.sections import RouteSettings
from dicomai.errors import InferenceError
from dicomai.findings import Detection, Evaluation, Findings, Measurement, Outcome, Region, Score, Shape
from dicomai.outputs import Predecessor, Sources, build, encode
from dicomai.outputs.common import geometry
from dicomai.outputs.keyimage import areas, choose_slices
from dicomai.outputs.provenance import OUTPUTS
from tests import results, synthetic

GAP = 6  # pixels between slices, and around them
YELLOW = (255, 214, 0)
NODULE, LUNG = Code("27925004", "SCT", "Nodule"), Code("39607008", "SCT", "Lung")
PRESENT = Code("52101004", "SCT", "Present")


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a key image and read it back from its bytes."""
    ds = build("keyimage", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def of(shape: tuple[int, int, int] = (5, 40, 40), **attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=shape, spacing=(3.0, 1.0, 1.0), **attributes)))


def near(picture: NDArray[Any], color: tuple[int, int, int], within: int = 60) -> NDArray[np.bool_]:
    """Find the pixels of a colour."""
    found: NDArray[np.bool_] = np.abs(picture.astype(int) - color).max(axis=2) < within
    return found


def shown(ds: Dataset, sources: Sources) -> list[int]:
    """Say which slices a key image says that it shows."""
    by_uid = {frame.instance.sop_instance_uid: z for z, frame in enumerate(sources.frames)}
    return sorted(by_uid[item.ReferencedSOPInstanceUID] for item in ds.SourceImageSequence)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every text that is drawn."""
    texts: list[str] = []
    real = render.ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, text: str, *args: Any, **kwargs: Any) -> None:
        texts.append(text)
        real(self, at, text, *args, **kwargs)

    monkeypatch.setattr(render.ImageDraw.ImageDraw, "text", text)
    return texts


@settings(max_examples=6, deadline=None)
@given(
    orientation=st.sampled_from(sorted(synthetic.ORIENTATIONS)),
    reverse=st.booleans(),
    enhanced=st.booleans(),
    order=st.permutations(range(4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_slices_are_shown_as_stored_and_contours_lie_on_the_edge_of_the_mask(
    orientation: str, reverse: bool, enhanced: bool, order: list[int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    shape, factor = (4, 64, 48), 8  # 64 rows become 512
    blocks = random.integers(0, 256, (4, 8, 6))
    array = blocks.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint16)
    array[0, 0, 0], array[0, 0, 1] = 0, 255
    labels = np.zeros(shape, np.uint8)
    y, x = random.integers(8, 30), random.integers(8, 20)
    labels[1:3, y : y + 20, x : x + 14] = 1
    labels[2, y : y + 25, x : x + 20] = 1  # the largest
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    if enhanced:
        images = [synthetic.enhanced(shape=shape, array=array, orientation=orientation, spacing=(3.0, 1.0, 1.0))]
        for groups in images[0].PerFrameFunctionalGroupsSequence:
            groups.FrameVOILUTSequence = [Dataset()]
            groups.FrameVOILUTSequence[0].update(window)
        images[0].SharedFunctionalGroupsSequence[0].pop("FrameVOILUTSequence", None)
    else:
        made = synthetic.series(
            modality="MR",
            shape=shape,
            array=array,
            orientation=orientation,
            reverse=reverse,
            spacing=(3.0, 1.0, 1.0),
            **window,
        )
        images = [made[z] for z in order]
    sources = results.sources(synthetic.instances(images))
    ds = built(results.findings(labels), sources)
    chosen = choose_slices(areas(results.findings(labels)), 4)
    assert 2 in chosen
    for place, z in enumerate(chosen):
        left = GAP + place * (48 * factor + GAP)
        panel = ds.pixel_array[GAP : GAP + 64 * factor, left : left + 48 * factor]
        outline = near(panel, results.segment().color, within=40)
        mask = labels[z].repeat(factor, axis=0).repeat(factor, axis=1).astype(bool)
        edge = binary_dilation(mask, iterations=4) & ~binary_erosion(mask, iterations=4)
        assert not (outline & ~edge).any(), "a contour lies off the mask's edge"
        inner = binary_dilation(mask) & ~binary_erosion(mask)
        assert (inner <= binary_dilation(outline, iterations=7)).all(), "an edge has no contour"
        middles = panel[factor * 4 :: factor * 8, factor * 4 :: factor * 8].astype(int)  # of the blocks
        grey = (np.ptp(middles, axis=2) == 0) & (np.arange(8)[:, None] % 7 > 0) & (np.arange(6) % 5 > 0)  # no text
        assert grey.sum() > 8
        np.testing.assert_allclose(middles[..., 0][grey], blocks[z][grey], atol=3)


def test_attributes_are_those_of_a_derived_picture_without_a_scale() -> None:
    sources = replace(of(BodyPartExamined="HEAD", LossyImageCompressionRatio="12.5", SeriesNumber=3), lossy=True)
    found = results.findings(results.ball((5, 40, 40)))
    old = Predecessor("keyimage", "1.2", "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.7", 9002)
    ds = built(found, sources, supersedes=(old,))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (ds.Modality, ds.ConversionType, ds.BurnedInAnnotation) == ("OT", "WSD", "YES")
    assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert (ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.BitsAllocated) == ("RGB", 3, 8)
    assert "PixelSpacing" not in ds
    assert "NominalScannedPixelSpacing" not in ds
    assert list(ds.PatientOrientation) == ["L", "P"]
    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 12.5)
    assert ds.BodyPartExamined == "HEAD"
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified, supersedes S9002"
    assert ds.SeriesNumber == 9002
    assert ds.StudyInstanceUID == sources.header.StudyInstanceUID
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    assert shown(ds, sources) == list(choose_slices(areas(found), 5))
    assert "DateOfSecondaryCapture" not in ds


def test_same_work_gives_the_same_bytes_and_its_own_identifiers() -> None:
    sources, found = of(), results.findings(results.ball((5, 40, 40)))
    one, two = (build("keyimage", found, sources, results.provenance()) for _ in range(2))
    seg = build("seg", found, sources, results.provenance())
    assert one is not None
    assert two is not None
    assert seg is not None
    assert encode(one) == encode(two)
    assert one.SOPInstanceUID != seg.SOPInstanceUID
    assert one.SeriesInstanceUID != seg.SeriesInstanceUID


def test_orientation_of_an_oblique_picture_is_that_of_its_slices() -> None:
    ds = built(results.findings(results.ball((5, 40, 40))), of(orientation=(1, 0, 0, 0, 0.8, 0.6)))
    assert list(ds.PatientOrientation) == ["L", "PH"]


def test_frames_of_a_multi_frame_source_are_named() -> None:
    whole = results.sources(synthetic.instances([synthetic.enhanced(shape=(6, 9, 11))]))
    part = Sources(whole.frames[2:5], whole.newest, lossy=False)
    ds = built(results.findings(np.ones((3, 9, 11), np.uint8)), part)
    (item,) = ds.SourceImageSequence
    assert list(item.ReferencedFrameNumber) == [3, 4, 5]


def test_text_names_who_made_it_and_the_numbers_but_never_the_patient(drawn: list[str]) -> None:
    one, other = results.segment(1), results.segment(2, "Größe: 山")
    labels = results.ball((5, 40, 40))
    found = Findings(
        results.findings(labels, segments=[one, other]).layers,
        (Measurement(results.VOLUME, 1292.3248, results.CM3, one),),
        Outcome.FINDINGS,
        ("Outside of the validated input.",),
    )
    sources = of(PatientName="Secret^Name", PatientID="ID-77", PatientBirthDate="19700102", SeriesNumber=3)
    ds = built(found, sources)
    said = " | ".join(drawn)
    assert "AI, unverified: brain_extraction 1.0.2, of series 3" in said
    assert "Intracranial structure  1292 cm3" in said
    assert "Gro?e: ?: looked for, not found" in said
    assert "Outside of the validated input." in said
    assert drawn.count("AI, unverified") == len(shown(ds, sources))
    assert not any(secret in said for secret in ("Secret", "ID-77", "1970"))
    assert str(ds.PatientName) == "Secret^Name"
    for place in range(3):
        left = GAP + place * (520 + GAP)  # 40 columns, 13 times enlarged
        assert near(ds.pixel_array[GAP : GAP + 30, left : left + 130], YELLOW, within=40).sum() > 50


def test_every_output_that_a_route_may_name_can_be_built_and_has_a_series_number() -> None:
    assert set(OUTPUTS) == RouteSettings.OUTPUTS
    for output in OUTPUTS:
        assert callable(importlib.import_module(f"dicomai.outputs.{output}").build)
    assert len({results.provenance().series_number(output) for output in OUTPUTS}) == len(OUTPUTS)


def boxes(depth: int, *slices: tuple[int, ...]) -> Findings:
    """Make findings with a segment for each list of slices, of which the second is the largest."""
    labels = np.zeros((depth, 32, 32), np.uint8)
    for number, zs in enumerate(slices, 1):
        for index, z in enumerate(zs):
            labels[z, number, : 4 if index == 1 else 2] = number
    return results.findings(labels, segments=[results.segment(n, f"Part {n}") for n in range(1, len(slices) + 1)])


def test_every_segment_is_shown_where_it_is_largest() -> None:
    assert choose_slices(areas(boxes(40, (3, 4, 5), (10, 11, 12), (20, 21), (20, 21))), 40) == (4, 11, 21)
    assert choose_slices(areas(boxes(40, (3, 4, 5))), 40) == (3, 4, 5)  # and others that it is on
    many = areas(boxes(40, *((4 * n, 4 * n + 1) for n in range(8)), (28, 29)))
    chosen = choose_slices(many, 40)
    assert len(chosen) == 6
    assert 29 in chosen, "where two are largest"
    assert choose_slices(many, 40, most=1) == (29,)


def test_what_is_on_no_slice_shown_is_named_with_its_image(drawn: list[str]) -> None:
    many = boxes(40, *((4 * n, 4 * n + 1) for n in range(8)))
    sources = of((40, 32, 32))
    ds = built(many, sources)
    said = " ".join(drawn)
    hidden = [n for n in range(8) if 4 * n not in shown(ds, sources) and 4 * n + 1 not in shown(ds, sources)]
    assert len(hidden) == 2
    assert "Found, but on none of these slices: " + ", ".join(f"Part {n + 1} (Im {4 * n + 2})" for n in hidden) in said


def test_where_nothing_was_found_the_picture_says_what_was_looked_for(drawn: list[str]) -> None:
    sources = of()
    found = results.findings(np.zeros((5, 40, 40), np.uint8), outcome=Outcome.NEGATIVE)
    assert shown(built(found, sources), sources) == [2]
    assert "Intracranial structure: looked for, not found" in drawn


@pytest.mark.parametrize(
    ("size", "spacing", "expected"),
    [
        ((64, 48), (1.0, 1.0), (512, 384)),
        ((512, 512), (0.7, 0.7), (512, 512)),
        ((600, 500), (1.0, 1.0), (600, 500)),
        ((2048, 1536), (0.1, 0.1), (1024, 768)),
        ((40, 160), (4.0, 1.0), (640, 640)),  # 160 mm both ways
        ((100, 50), (1.0, 4.0), (300, 600)),
        ((10, 1000), (1.0, 1.0), (500, 1000)),  # black above and below
    ],
)
def test_size_is_legible_and_proportions_are_the_patients(
    size: tuple[int, int], spacing: tuple[float, float], expected: tuple[int, int]
) -> None:
    images = synthetic.series(shape=(1, *size), spacing=(3.0, *spacing), array=np.full((1, *size), 7, np.uint16))
    sources = results.sources(synthetic.instances(images))
    ds = built(results.findings(np.zeros((1, *size), np.uint8)), sources)
    text = max(15, max(expected) // 32)
    assert ds.Columns == expected[1] + 2 * GAP
    assert expected[0] + 2 * GAP + 3 * text < ds.Rows < expected[0] + 4 * GAP + 8 * text


def test_label_map_of_another_grid_is_refused() -> None:
    with pytest.raises(InferenceError, match="another"):
        built(results.findings(np.zeros((5, 8, 8), np.uint8)), of())


def detections(sources: Sources, *shapes: Shape) -> Findings:
    """Detect something of each shape in the middle of a slice, 20 mm by 10 mm in it, between the last two slices."""
    place = geometry(sources)
    right, down = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    normal = np.cross(right, down)
    center = np.asarray(place.positions[-1]) - 1.2 * normal + 20 * down + 20 * right  # 1.8 mm above the last but one
    axes = tuple(tuple(map(float, axis)) for axis in (10 * right, 5 * down, 0.5 * normal))
    made = [
        Detection(NODULE, results.ABNORMALITY, LUNG, Region(shape, tuple(map(float, center)), axes if n else ()), 0.871)
        for shape, n in zip(shapes, (shape is not Shape.POINT for shape in shapes), strict=True)
    ]
    return Findings((), (), Outcome.FINDINGS, detections=tuple(made))


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
@pytest.mark.parametrize(
    ("shape", "size"), [(Shape.BOX, (20, 10)), (Shape.ELLIPSOID, (20, 10)), (Shape.POINT, (2.4, 2.4))]
)
def test_what_was_detected_is_outlined_in_the_slice_nearest_to_it(
    shape: Shape, size: tuple[float, float], orientation: str
) -> None:
    sources = of(orientation=orientation)
    ds = built(detections(sources, shape), sources)
    assert shown(ds, sources) == [4], "the slice that is nearest, though the detection lies between two"
    y, x = np.nonzero(near(ds.pixel_array[: 520 + GAP, :], words.DETECTED))
    scale = 520 / 40
    middle = np.asarray([(y.min() + y.max()) / 2, (x.min() + x.max()) / 2]) - GAP
    np.testing.assert_allclose(middle, 20.5 * scale, atol=scale)
    np.testing.assert_allclose([np.ptp(x) / scale, np.ptp(y) / scale], size, atol=1.2)
    in_corner = (x < x.min() + scale) & (y < y.min() + scale)
    assert in_corner.any() == (shape is Shape.BOX) or shape is Shape.POINT


def test_what_is_about_no_segment_is_said_in_words(drawn: list[str]) -> None:
    sources = of()
    found = replace(
        detections(sources, Shape.BOX),
        evaluations=(Evaluation(Code("233604007", "SCT", "Pneumonia"), PRESENT, LUNG, 0.934),),
        scores=(Score(Code("112058", "DCM", "Calcium score"), 112.4, Code("1", "UCUM", "no units")),),
    )
    built(found, sources)
    said = " ".join(drawn)
    assert "Pneumonia, Lung: Present, probability 0.93" in said
    assert "Calcium score: 112" in said
    assert "Nodule, Lung: at R 20.0, A 10.0, H 30.8 mm, 20.0 x 10.0 x 1.0 mm, probability 0.87" in said


def test_a_detection_that_reaches_a_slice_shown_is_not_said_to_be_hidden(drawn: list[str]) -> None:
    sources = of((40, 32, 32))
    (one,) = detections(sources, Shape.BOX).detections
    middle = tuple(at + by for at, by in zip(geometry(sources).positions[20], (16.0, 16.0, 0.0), strict=True))
    small = [
        replace(one, region=Region(Shape.POINT, (middle[0], middle[1], middle[2] + 3.0 * n))) for n in range(-6, 0)
    ]
    large = replace(
        one, region=Region(Shape.BOX, middle, ((8.0, 0, 0), (0, 8.0, 0), (0, 0, 9.5))), type=results.INTRACRANIAL
    )
    found = Findings((), (), Outcome.FINDINGS, detections=(*small, *small, large))
    ds = built(found, sources)
    assert 20 not in shown(ds, sources)
    assert "on none of these slices" not in " ".join(drawn)


def test_it_replaces_the_picture_that_said_that_there_is_no_result(drawn: list[str]) -> None:
    old = Predecessor("reportimage", "1.2", "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.7", 9011)
    built(results.findings(results.ball((5, 40, 40))), of(), supersedes=(old,))
    assert "This picture replaces the one in series 9011." in drawn


def test_a_model_without_segments_shows_the_middle_slice_and_its_answer(drawn: list[str]) -> None:
    sources = of()
    absent = Code("272519000", "SCT", "Absent")
    asked = Evaluation(Code("233604007", "SCT", "Pneumonia"), absent, LUNG, 0.03)
    assert shown(built(Findings((), (), Outcome.NEGATIVE, evaluations=(asked,)), sources), sources) == [2]
    assert "Pneumonia, Lung: Absent, probability 0.03" in drawn
    assert not any("Nothing was found" in text for text in drawn)
    built(Findings((), (), Outcome.NEGATIVE), sources)  # detections were looked for
    assert "Nothing was found of what was looked for." in drawn


@pytest.mark.parametrize("shape", [Shape.BOX, Shape.ELLIPSOID])
def test_what_is_smaller_than_a_pixel_is_drawn_as_a_circle(shape: Shape) -> None:
    sources = of()
    (one,) = detections(sources, shape).detections
    tiny = replace(one.region, semi_axes=tuple(tuple(v / 100 for v in axis) for axis in one.region.semi_axes))
    tiny = replace(tiny, center=tuple(v + 0.3 for v in tiny.center))  # between the centres of pixels
    ds = built(Findings((), (), Outcome.FINDINGS, detections=(replace(one, region=tiny),)), sources)
    assert near(ds.pixel_array[: 520 + GAP, :], words.DETECTED).any()


@pytest.mark.parametrize(("along", "steps"), [("row", 60), ("column", -25), ("normal", 9)])
def test_what_lies_outside_of_the_images_is_said_to_be_on_none(drawn: list[str], along: str, steps: float) -> None:
    sources = of()
    row, column = np.asarray(geometry(sources).orientation).reshape(2, 3)
    way = {"row": row, "column": column, "normal": np.cross(row, column)}[along]
    (one,) = detections(sources, Shape.POINT).detections
    moved = replace(one.region, center=tuple(map(float, np.asarray(one.region.center) + steps * way)))
    built(Findings((), (), Outcome.FINDINGS, detections=(replace(one, region=moved),)), sources)
    assert "Found, but on none of these slices: Nodule (outside of the images)." in " ".join(drawn)


@pytest.mark.parametrize(
    ("probability", "says"),
    [(1.0, "1"), (0.996, "> 0.99"), (0.004, "< 0.01"), (0.0, "0"), (0.99, "0.99"), (0.01, "0.01")],
)
def test_no_doubt_is_rounded_away(probability: float, says: str) -> None:
    asked = Evaluation(Code("233604007", "SCT", "Pneumonia"), PRESENT, LUNG, probability)
    (said,) = words.statements(Findings((), (), Outcome.FINDINGS, evaluations=(asked,)))
    assert said.value == f"Present, probability {says}"
