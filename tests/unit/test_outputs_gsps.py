"""Presentation states: outlines lie on the edge of the mask in image coordinates, and grey values are the sources'."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from skimage.draw import polygon2mask

from dicomai.errors import InferenceError
from dicomai.findings import Detection, Findings, Region, Shape
from dicomai.outputs import Sources, build, contours, encode
from tests import results, synthetic

WINDOW = {"WindowCenter": "128", "WindowWidth": "256"}


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a presentation state and read it back from its bytes."""
    ds = build("gsps", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def of(**attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(**({"shape": (5, 8, 10)} | WINDOW | attributes))))


def annotations(ds: Dataset, layer: str) -> list[Dataset]:
    return [item for item in ds.GraphicAnnotationSequence if item.GraphicLayer == layer]


def points(graphic: Dataset) -> Any:
    """Give a graphic's points (column, row), the corner of the image being 0, 0."""
    assert graphic.GraphicAnnotationUnits == "PIXEL"
    found = np.asarray(graphic.GraphicData, float).reshape(-1, 2)
    assert len(found) == graphic.NumberOfGraphicPoints
    return found


def test_a_voxel_in_the_corner_is_outlined_from_nought_to_one() -> None:
    labels = np.zeros((5, 8, 10), np.uint8)
    labels[2, 0, 0] = labels[3, 7, 9] = 1
    first, last = annotations(built(results.findings(labels), of()), "SEGMENT_1")
    corners = {tuple(point) for point in points(first.GraphicObjectSequence[0])}
    assert corners == {(0, 0), (1, 0), (1, 1), (0, 1)}
    corners = {tuple(point) for point in points(last.GraphicObjectSequence[0])}
    assert corners == {(9, 7), (10, 7), (10, 8), (9, 8)}


@pytest.mark.parametrize("enhanced", [False, True])
def test_outlines_enclose_the_mask_on_the_image_that_they_name(enhanced: bool) -> None:
    shape = (5, 20, 30)
    if enhanced:
        image = synthetic.enhanced(shape=shape, orientation="coronal")
        sources = results.sources(synthetic.instances([image]))
    else:
        sources = of(shape=shape, orientation="sagittal", spacing=(3.0, 2.0, 0.6), reverse=True)
    organ = results.ball(shape)
    organ[2, 7:9, 17:19] = 0  # a hole
    lesions = np.zeros(shape, np.uint8)
    lesions[1:3, 3:6, 4:9] = 2
    segments = [results.segment(1, "Organ"), results.segment(2, "Lesion", color=(10, 20, 30))]
    ds = built(results.findings(organ, lesions, segments=segments), sources)
    by_name = {(one.instance.sop_instance_uid, one.number): z for z, one in enumerate(sources.frames)}
    for layer, mask in (("SEGMENT_1", organ == 1), ("SEGMENT_2", lesions == 2)):
        drawn = np.zeros(shape, bool)
        for item in annotations(ds, layer):
            (image,) = item.ReferencedImageSequence
            z = by_name[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            for graphic in item.GraphicObjectSequence:
                assert graphic.GraphicType == "POLYLINE"
                line = points(graphic)
                assert (line[0] == line[-1]).all()
                drawn[z] ^= polygon2mask(shape[1:], line[:, ::-1] - 0.5)  # type: ignore[no-untyped-call]  # skimage
        np.testing.assert_array_equal(drawn, mask)
    shown = (
        [
            by_name[item.ReferencedSOPInstanceUID, None]
            for item in ds.ReferencedSeriesSequence[0].ReferencedImageSequence
        ]
        if not enhanced
        else [number - 1 for number in ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedFrameNumber]
    )
    assert shown == np.flatnonzero((organ + lesions).any(axis=(1, 2))).tolist()


def test_each_segment_has_a_layer_in_its_colour_and_its_numbers_on_its_largest_slice() -> None:
    labels = np.zeros((5, 8, 10), np.uint8)
    labels[1:4, 2:4, 3:5] = 1
    labels[2, 2:5, 3:7] = 1
    labels[3:5, 6, 8] = 2
    segments = [results.segment(1, "Größe"), results.segment(2, "Lesion", color=(10, 200, 30))]
    sources = of(PatientName="Secret^Name")
    found = results.findings(labels, segments=segments)
    ds = built(found, sources)
    names = [(item.GraphicLayer, item.GraphicLayerDescription) for item in ds.GraphicLayerSequence]
    assert names[1:] == [("SEGMENT_1", "Größe"), ("SEGMENT_2", "Lesion")]
    assert ds.GraphicLayerSequence[2].GraphicLayerRecommendedDisplayCIELabValue == list(
        CIELabColor.from_rgb(10, 200, 30).value
    )
    said = {
        item.ReferencedImageSequence[0].ReferencedSOPInstanceUID: item.TextObjectSequence[0].UnformattedTextValue
        for item in annotations(ds, "SEGMENT_1")
        if "TextObjectSequence" in item
    }
    assert said == {sources.frames[2].instance.sop_instance_uid: "Größe, 1292 cm3"}
    (mark,) = annotations(ds, "AI_UNVERIFIED")
    assert "ReferencedImageSequence" not in mark, "it stands on every image"
    assert mark.TextObjectSequence[0].UnformattedTextValue == "AI, unverified: brain_extraction 1.0.2"
    seg = build("seg", found, sources, results.provenance())
    assert seg is not None
    for number, described in enumerate(seg.SegmentSequence, 1):
        for item in annotations(ds, f"SEGMENT_{number}"):
            assert {one.TrackingUID for one in item.GraphicObjectSequence} == {described.TrackingUID}


def test_attributes_are_those_of_the_series_and_the_study() -> None:
    sources = of(SeriesNumber=3, BodyPartExamined="KNEE", Laterality="L")
    ds = built(results.findings(results.ball((5, 8, 10))), sources)
    assert (ds.Modality, ds.ContentLabel, ds.SeriesNumber) == ("PR", "AI_UNVERIFIED", 9004)
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified"
    assert (ds.PresentationCreationDate, ds.PresentationCreationTime) == ("20260101", "003015")
    assert (ds.BodyPartExamined, ds.Laterality) == ("KNEE", "L")
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    (area,) = ds.DisplayedAreaSelectionSequence
    assert (area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner) == ([1, 1], [10, 8])
    assert area.PresentationPixelSpacing == [0.8, 0.6]
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == sources.header.SeriesInstanceUID
    assert ds.PresentationLUTShape == "IDENTITY"


def test_windows_are_those_of_each_image_after_one_rescaling() -> None:
    sources = of(
        WindowCenter=lambda z: "40" if z < 3 else ["60", "300"], WindowWidth=lambda z: "400" if z < 3 else ["80", "900"]
    )
    ds = built(results.findings(np.ones((5, 8, 10), np.uint8)), sources)
    assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (1, -1024, "HU")
    first, second = ds.SoftcopyVOILUTSequence
    assert (first.WindowCenter, first.WindowWidth, len(first.ReferencedImageSequence)) == (40, 400, 3)
    assert (second.WindowCenter, second.WindowWidth, len(second.ReferencedImageSequence)) == (60, 80, 2)


def test_where_rescaling_differs_from_image_to_image_windows_are_of_stored_values() -> None:
    sources = of(RescaleSlope=lambda z: str(z + 1), RescaleIntercept="10", WindowCenter="50.5", WindowWidth="101")
    ds = built(results.findings(np.ones((5, 8, 10), np.uint8)), sources)
    assert "RescaleSlope" not in ds
    for z, item in enumerate(ds.SoftcopyVOILUTSequence):
        low = float(item.WindowCenter) - 0.5 - (float(item.WindowWidth) - 1) / 2
        high = low + float(item.WindowWidth) - 1
        assert low * (z + 1) + 10 == pytest.approx(0)
        assert high * (z + 1) + 10 == pytest.approx(100)


def test_images_without_a_window_get_one_of_what_they_show_and_inverted_ones_stay_so() -> None:
    array = np.full((5, 8, 10), 100, np.uint16)
    array[:, 2:6] = 300
    sources = of(
        modality="MR", array=array, WindowCenter=None, WindowWidth=None, PhotometricInterpretation="MONOCHROME1"
    )
    ds = built(results.findings(np.ones((5, 8, 10), np.uint8)), sources)
    (item,) = ds.SoftcopyVOILUTSequence
    assert (item.WindowCenter, item.WindowWidth) == (200, 200)
    assert "ReferencedImageSequence" not in item
    assert ds.PresentationLUTShape == "INVERSE"


def test_a_line_too_long_for_its_attribute_goes_on_in_another() -> None:
    comb = np.stack([np.ones(8200, bool), np.arange(8200) % 2 == 0])[np.newaxis]
    sources = of(array=np.zeros(comb.shape, np.uint16))
    ds = built(results.findings(comb.astype(np.uint8)), sources)
    graphics = annotations(ds, "SEGMENT_1")[0].GraphicObjectSequence
    lines = [points(graphic) for graphic in graphics]
    assert len(lines) > 1
    assert all(graphic["GraphicData"].VR == "FL" for graphic in graphics)
    for one, other in zip(lines, lines[1:] + lines[:1], strict=True):
        assert (one[-1] == other[0]).all()
    x, y = np.concatenate([line[:-1] for line in lines]).T
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == comb.sum()


def test_same_work_gives_the_same_bytes_and_nothing_found_gives_none() -> None:
    sources, found = of(), results.findings(results.ball((5, 8, 10)))
    one, two = (build("gsps", found, sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    assert build("gsps", results.findings(np.zeros((5, 8, 10), np.uint8)), sources, results.provenance()) is None
    with pytest.raises(InferenceError, match="another"):
        built(results.findings(np.ones((5, 8, 9), np.uint8)), sources)


def test_grey_values_that_one_state_cannot_give_make_none() -> None:
    """Of a Modality LUT the rescaling would be a guess; a window of stored values cannot turn light into dark."""
    found = results.findings(np.ones((5, 8, 10), np.uint8))
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "US", bytes(4)
    cases = (
        {"ModalityLUTSequence": [table], "RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": lambda z: str(-z - 1)},
    )
    for attributes in cases:
        assert build("gsps", found, of(**attributes), results.provenance()) is None
    assert built(found, of(RescaleSlope="-2")).RescaleSlope == -2


@pytest.mark.parametrize("output", ["gsps", "rtstruct"])
def test_a_mask_in_thousands_of_pieces_is_not_outlined(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (5, 256, 256)
    specks = (np.random.default_rng(1).random(shape) > 0.98).astype(np.uint8)
    sources = of(shape=shape, array=np.zeros(shape, np.uint16))
    monkeypatch.setattr(contours, "MOST_PARTS", 3000)
    for labels in (specks, 1 - specks):  # parts, and holes
        assert build(output, results.findings(labels), sources, results.provenance()) is None
    monkeypatch.setattr(contours, "MOST_PARTS", 2)
    few = np.zeros(shape, np.uint8)
    few[1:3, 2:7, 2:7] = few[2, 9, 9] = 1
    few[1, 4, 4] = 0
    assert build(output, results.findings(few), sources, results.provenance()) is not None
    few[4, ::2, 3] = 1
    assert build(output, results.findings(few), sources, results.provenance()) is None


@pytest.mark.parametrize("masks", [False, True])
def test_what_was_detected_is_outlined_on_every_image_that_shows_it(masks: bool) -> None:
    sources = of(shape=(5, 20, 30))  # 2.0 mm between slices, pixels of 0.8 mm by 0.6 mm
    region = Region(Shape.BOX, (-31.0, -22.0, 24.0), ((3.0, 0, 0), (0, 2.0, 0), (0, 0, 2.5)))
    one = Detection(
        Code("27925004", "SCT", "Nodule"), results.ABNORMALITY, Code("39607008", "SCT", "Lung"), region, 0.9
    )
    far = replace(one, region=Region(Shape.POINT, (900.0, 900.0, 900.0)))
    found = results.findings(*([results.ball((5, 20, 30))] if masks else []))
    found = replace(found, detections=(one, far), measurements=found.measurements if masks else ())
    ds = built(found, sources)
    items = annotations(ds, "DETECTIONS")
    by_uid = {frame.instance.sop_instance_uid: z for z, frame in enumerate(sources.frames)}
    assert [by_uid[item.ReferencedImageSequence[0].ReferencedSOPInstanceUID] for item in items] == [1, 2, 3]
    for item in items:
        (line,) = (points(graphic) for graphic in item.GraphicObjectSequence)
        # voxels whose centres lie from -34 to -28 mm and from -24 to -20 mm; the first lies at -40 and -30 mm
        assert (line.min(axis=0) == (10, 8)).all()
        assert (line.max(axis=0) == (21, 13)).all()
    assert [item.TextObjectSequence[0].UnformattedTextValue for item in items if "TextObjectSequence" in item] == [
        "Nodule, Lung: at R 31.0, A 22.0, H 24.0 mm, 6.0 x 4.0 x 5.0 mm, probability 0.9"
    ]
    assert ds.GraphicLayerSequence[-1].GraphicLayer == "DETECTIONS"
    assert len({item.GraphicLayerOrder for item in ds.GraphicLayerSequence}) == 2 + masks
    report = build("sr", found, sources, results.provenance())
    assert str(items[0].GraphicObjectSequence[0].TrackingUID) in str(report)
    nothing = replace(found, layers=(), measurements=(), detections=(far,))
    assert build("gsps", nothing, sources, results.provenance()) is None


def test_a_table_of_grey_values_is_carried_where_the_image_has_no_window() -> None:
    def table(z: int) -> list[Dataset]:
        item = Dataset()
        item.add_new("LUTDescriptor", "SS", [4, -3, 16])
        item.add_new("LUTData", "OW", bytes([z, 0, 90, 0, 160, 0, 255, 0]))
        return [item]

    found = results.findings(np.ones((5, 8, 10), np.uint8))
    ds = built(found, of(WindowCenter=None, WindowWidth=None, VOILUTSequence=table))
    assert len(ds.SoftcopyVOILUTSequence) == 5
    carried = ds.SoftcopyVOILUTSequence[3].VOILUTSequence[0]
    assert list(carried.LUTDescriptor) == [4, -3, 16]
    assert bytes(carried.LUTData) == bytes([3, 0, 90, 0, 160, 0, 255, 0])
    window = built(found, of(VOILUTSequence=table)).SoftcopyVOILUTSequence[0]
    assert "VOILUTSequence" not in window
    one_by_one = of(WindowCenter=None, WindowWidth=None, VOILUTSequence=table, RescaleSlope=lambda z: str(z + 1))
    assert "VOILUTSequence" not in built(found, one_by_one).SoftcopyVOILUTSequence[0]
