"""Structure sets: contours enclose the mask's voxels, in the patient's coordinates, and say who drew them."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from skimage.draw import polygon2mask

from dicomai.errors import GeometryError, InferenceError
from dicomai.findings import Findings
from dicomai.outputs import Predecessor, Sources, build, encode, restate
from dicomai.outputs.contours import polygons
from tests import results, synthetic

LONG = 1285  # corners: as many as ContourData can hold


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a structure set and read it back from its bytes."""
    ds = build("rtstruct", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def area(polygon: NDArray[np.float64]) -> float:
    x, y = polygon.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def filled(parts: list[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Count for each voxel how many polygons enclose its centre."""
    inside = [polygon2mask(shape, part[:, ::-1]) for part in parts]  # type: ignore[no-untyped-call]  # skimage
    return sum((one.astype(int) for one in inside), np.zeros(shape, int))


def drawn(ds: Dataset, roi: int, sources: Sources) -> NDArray[np.int64]:
    """Fill an ROI's contours again, with the geometry of the image that each of them names."""
    by_name = {(frame.instance.sop_instance_uid, frame.number): (z, frame) for z, frame in enumerate(sources.frames)}
    volume = np.zeros((len(sources.frames), sources.header.Rows, sources.header.Columns), int)
    for contour in ds.ROIContourSequence[roi].ContourSequence:
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        (image,) = contour.ContourImageSequence
        z, frame = by_name[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
        points = np.asarray(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        for index in indices(points, frame):
            volume[z] += filled([index], volume.shape[1:])
    return volume


def indices(points: NDArray[np.float64], frame: Any) -> Iterator[NDArray[np.float64]]:
    """Give points in mm as (x, y) in voxels of a frame, as its attributes say."""
    ds = frame.instance.header
    if frame.number is None:
        six, at, size = ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing
    else:
        shared = ds.SharedFunctionalGroupsSequence[0]
        six = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        size = shared.PixelMeasuresSequence[0].PixelSpacing
        at = ds.PerFrameFunctionalGroupsSequence[frame.number - 1].PlanePositionSequence[0].ImagePositionPatient
    row, column = np.asarray(six[:3], float), np.asarray(six[3:], float)
    away = points - np.asarray(at, float)
    assert np.abs(away @ np.cross(row, column)).max() < 0.01, "a contour lies off its image's plane"
    yield np.stack([away @ row / float(size[1]), away @ column / float(size[0])], axis=1)


@settings(max_examples=60, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), most=st.sampled_from([12, LONG]))
def test_polygons_enclose_the_mask_and_nothing_else(mask: NDArray[np.bool_], most: int) -> None:
    made = polygons(mask, most)
    assert all(4 <= len(polygon) <= most for polygon in made)
    np.testing.assert_array_equal(filled(made, mask.shape), mask)
    assert sum(map(area, made)) == mask.sum()


def test_a_square_has_four_corners_on_the_edges_of_its_voxels_and_a_hole_a_channel() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    (square,) = polygons(mask, LONG)
    assert {tuple(point) for point in square} == {(2.5, 1.5), (7.5, 1.5), (7.5, 6.5), (2.5, 6.5)}
    assert len(square) == 4
    mask[4, 5] = False
    (ring,) = polygons(mask, LONG)
    assert len(ring) == 10  # four and four corners, and where the channel leaves and comes back
    assert {tuple(point) for point in ring} >= {(2.5, 3.5), (4.5, 3.5), (5.5, 4.5)}


@settings(max_examples=8, deadline=None)
@given(
    orientation=st.sampled_from(sorted(synthetic.ORIENTATIONS)),
    reverse=st.booleans(),
    enhanced=st.booleans(),
    order=st.permutations(range(5)),
    seed=st.integers(0, 2**32 - 1),
)
def test_contours_lie_where_the_mask_is(
    orientation: str, reverse: bool, enhanced: bool, order: list[int], seed: int
) -> None:
    shape = (5, 12, 14)
    kind: dict[str, Any] = {"shape": shape, "spacing": (3.0, 1.7, 0.6), "orientation": orientation}
    if enhanced:
        images = [synthetic.enhanced(**kind)]
    else:
        made = synthetic.series(reverse=reverse, tilt=12, **kind)
        images = [made[z] for z in order]
    sources = results.sources(synthetic.instances(images))
    random = np.random.default_rng(seed)
    organ = results.ball(shape) * (random.random(shape) > 0.1)
    lesions = np.where(random.random(shape) > 0.9, 2, 0).astype(np.uint8)
    found = results.findings(
        organ.astype(np.uint8), lesions, segments=[results.segment(1, "Organ"), results.segment(2, "Lesion")]
    )
    ds = built(found, sources)
    assert [str(roi.ROIName) for roi in ds.StructureSetROISequence] == ["Organ", "Lesion"]
    np.testing.assert_array_equal(drawn(ds, 0, sources), organ)
    np.testing.assert_array_equal(drawn(ds, 1, sources), lesions == 2)


def test_who_drew_it_what_it_is_and_that_nobody_has_seen_it() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(SeriesNumber=3)))
    old = Predecessor("rtstruct", "1.2", "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.481.3", 9005)
    tumour = results.segment(2, "Tumour", category=results.ABNORMALITY, color=(10, 20, 30))
    labels = np.zeros((5, 8, 10), np.uint8)
    labels[1], labels[2] = 1, 2
    made = results.provenance(supersedes=(old,))
    found = results.findings(labels, segments=[results.segment(1), tumour])
    ds = built(found, sources, supersedes=(old,))
    assert ds.ApprovalStatus == "UNAPPROVED"
    assert (ds.Modality, ds.StructureSetLabel) == ("RTSTRUCT", "AI unverified")
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified, supersedes S9005"
    assert (ds.StructureSetDate, ds.StructureSetTime) == ("20260101", "003015")
    assert ds.PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID == "1.2.4"
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    seg = build("seg", found, sources, made)
    assert seg is not None
    for number, (roi, said, described) in enumerate(
        zip(ds.StructureSetROISequence, ds.RTROIObservationsSequence, seg.SegmentSequence, strict=True), 1
    ):
        assert roi.ROINumber == said.ReferencedROINumber == number
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert roi.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.0.2"
        assert roi.ConceptualVolumeIdentificationSequence[0].ConceptualVolumeUID == described.TrackingUID
        assert roi.ReferencedFrameOfReferenceUID == ds.FrameOfReferenceUID == seg.FrameOfReferenceUID
    assert [said.RTROIInterpretedType for said in ds.RTROIObservationsSequence] == ["ORGAN", ""]
    assert ds.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0].CodeValue == tumour.type.value
    assert ds.ROIContourSequence[1].ROIDisplayColor == [10, 20, 30]
    series = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == sources.header.SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence] == [
        one.sop_instance_uid for one in sources.instances
    ]


def test_same_work_gives_the_same_bytes_and_a_corrected_patient_changes_no_contour() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(TimezoneOffsetFromUTC="+0100")))
    found = results.findings(results.ball((5, 8, 10)))
    one, two = (build("rtstruct", found, sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    newest = Dataset()
    newest.update(sources.newest)
    newest.PatientName, newest.TimezoneOffsetFromUTC = "Corrected^Name", "+0900"
    again = pydicom.dcmread(io.BytesIO(encode(restate(pydicom.dcmread(io.BytesIO(encode(one))), newest))))
    assert again.PatientName == "Corrected^Name"
    assert again.ROIContourSequence == pydicom.dcmread(io.BytesIO(encode(two))).ROIContourSequence
    assert (one.StructureSetTime, again.StructureSetTime) == ("003015", "083015")


def test_a_contour_too_long_for_its_attribute_is_cut_in_two() -> None:
    y, x = np.mgrid[:30, :700]
    comb = ((x % 2 == 0) | (y < 2))[np.newaxis].astype(np.uint8)  # 350 teeth of four corners
    images = synthetic.series(array=np.zeros(comb.shape, np.uint16), origin=(-12345.678, -12345.678, 0))
    sources = results.sources(synthetic.instances(images))
    ds = built(results.findings(comb), sources)
    contours = ds.ROIContourSequence[0].ContourSequence
    assert len(contours) == 2
    assert [contour["ContourData"].VR for contour in contours] == ["DS", "DS"]
    assert [contour.ContourNumber for contour in contours] == [1, 2]
    np.testing.assert_array_equal(drawn(ds, 0, sources), comb)


def test_where_nothing_was_found_there_is_no_structure_set() -> None:
    sources = results.sources(synthetic.instances(synthetic.series()))
    assert build("rtstruct", results.findings(np.zeros((5, 8, 10), np.uint8)), sources, results.provenance()) is None


def test_what_cannot_be_placed_is_refused() -> None:
    sources = results.sources(synthetic.instances(synthetic.series()))
    with pytest.raises(InferenceError, match="another"):
        built(results.findings(np.ones((5, 8, 9), np.uint8)), sources)
    del sources.header.PixelSpacing
    with pytest.raises(GeometryError, match="PixelSpacing"):
        built(results.findings(results.ball((5, 8, 10))), sources)
