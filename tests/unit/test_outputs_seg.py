"""The segmentation object: every voxel where it was, every reference to the right image."""

import io
from dataclasses import replace
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.errors import GeometryError, InferenceError
from dicomai.findings import Findings, Layer, Outcome
from dicomai.outputs import Sources, build, encode, labelmap, restate, seg
from dicomai.profiles import LABEL_MAP_SYNTAXES
from tests import results, synthetic


def built(findings: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a segmentation and read it back from its bytes."""
    ds = build("seg", findings, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def label_maps(ds: Dataset, sources: Sources) -> dict[int, NDArray[np.bool_]]:
    """Read the segments' masks (z, y, x) by the references to source images, as viewers do."""
    place = {(frame.instance.sop_instance_uid, frame.number): z for z, frame in enumerate(sources.frames)}
    masks = {
        int(item.SegmentNumber): np.zeros((len(sources.frames), ds.Rows, ds.Columns), dtype=bool)
        for item in ds.SegmentSequence
    }
    pixels = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for groups, plane in zip(ds.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        image = groups.DerivationImageSequence[0].SourceImageSequence[0]
        z = place[(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))]
        identified = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        masks[identified[0].ReferencedSegmentNumber][z] = plane
    return masks


def references(ds: Dataset) -> list[tuple[str, str]]:
    """Give class and UID of every instance that an object refers to."""
    named = []
    if "ReferencedSOPInstanceUID" in ds:
        named.append((ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID))
    for element in ds:
        for item in element.value if element.VR == "SQ" else ():
            named += references(item)
    return named


def test_enhanced_multi_frame_source_is_referred_to_by_frame() -> None:
    image = synthetic.enhanced(shape=(6, 9, 11), orientation="coronal")
    whole = results.sources(synthetic.instances([image]))
    part = Sources(whole.frames[2:5], whole.newest, lossy=False)  # one stack of several in the instance
    labels = results.ball((3, 9, 11))
    ds = built(results.findings(labels), part)
    np.testing.assert_array_equal(label_maps(ds, part)[1], labels == 1)
    assert [item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence] == [image.SOPInstanceUID]
    assert ds.SourceImageSequence[0].ReferencedSOPClassUID == image.SOPClassUID


def test_a_segment_without_voxels_is_left_out_and_numbers_have_no_gap() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    labels = results.ball((4, 8, 8), value=3)
    segments = [results.segment(number, f"Part {number}") for number in (1, 2, 3)]
    ds = built(results.findings(labels, segments=segments), sources)
    assert [(item.SegmentNumber, item.SegmentLabel) for item in ds.SegmentSequence] == [(1, "Part 3")]
    np.testing.assert_array_equal(label_maps(ds, sources)[1], labels == 3)


def test_nothing_found_makes_no_object() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    nothing = results.findings(np.zeros((4, 8, 8), np.uint8), outcome=Outcome.NEGATIVE)
    assert build("seg", nothing, sources, results.provenance()) is None


@pytest.mark.parametrize("overlap", [True, False])
def test_layers_become_segments_of_one_object(overlap: bool) -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    one, other = np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8), np.uint16)
    one[:, :4] = 5
    other[:, 3 if overlap else 4 :] = 300
    layers = (
        Layer(one, (results.segment(5, "Organ"),)),
        Layer(other, (results.segment(300, "Lesion", category=results.ABNORMALITY),)),
    )
    ds = built(Findings(layers, (), Outcome.FINDINGS), sources)
    masks = label_maps(ds, sources)
    np.testing.assert_array_equal(masks[1], one == 5)
    np.testing.assert_array_equal(masks[2], other == 300)
    assert [item.SegmentLabel for item in ds.SegmentSequence] == ["Organ", "Lesion"]
    assert ds.SegmentsOverlap == ("YES" if overlap else "NO")


def test_spacing_comes_from_positions_not_from_the_header() -> None:
    images = synthetic.series(shape=(5, 8, 8), spacing=(7.0, 1, 1), SpacingBetweenSlices="2.0", SliceThickness="5.0")
    ds = built(results.findings(results.ball((5, 8, 8))), results.sources(synthetic.instances(images)))
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SpacingBetweenSlices), float(measures.SliceThickness)) == (7.0, 5.0)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize(
    ("attributes", "empty"),
    [
        ({}, ()),
        ({"orientation": "sagittal"}, (0, 4)),
        ({}, (2,)),
        ({}, (1, 2, 3, 4)),
        ({"positions": [0, 2, 5, 6, 8]}, ()),
    ],
    ids=["regular", "cropped", "gap", "single", "irregular"],
)
def test_frames_are_those_that_highdicom_makes(
    attributes: dict[str, Any], empty: tuple[int, ...], segments: int
) -> None:
    """It makes one only for us; here it makes them all."""
    images = synthetic.series(shape=(5, 8, 10), **attributes)
    sources = results.sources(synthetic.instances(images))
    labels = np.full((5, 8, 10), segments, np.uint8)
    labels[:, :4], labels[list(empty)] = 1, 0
    described = [results.segment(n + 1) for n in range(segments)]
    ours = build("seg", results.findings(labels, segments=described), sources, results.provenance())
    assert ours is not None
    theirs = hd.seg.Segmentation(
        [frame.instance.header for frame in sources.frames], labels, "BINARY", ours.SegmentSequence, "1.2", 1, "1.3",
        1, "a", "b", "1", "2",
    )  # fmt: skip
    theirs = pydicom.dcmread(io.BytesIO(encode(theirs)))  # highdicom compares its sequences with no others
    references = ("SourceImageSequence", "ReferencedSeriesSequence")
    for keyword in ("NumberOfFrames", "DimensionOrganizationType", "PerFrameFunctionalGroupsSequence", *references):
        assert ours.get(keyword) == theirs.get(keyword)


def test_segment_says_what_it_is_and_what_made_it() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    ds = built(results.findings(results.ball((4, 8, 8))), sources)
    item = ds.SegmentSequence[0]
    assert item.SegmentAlgorithmType == "AUTOMATIC"
    assert item.SegmentedPropertyTypeCodeSequence[0].CodeValue == "128319008"
    assert item.AnatomicRegionSequence[0].CodeValue == "128319008"
    identified = item.SegmentationAlgorithmIdentificationSequence[0]
    assert (identified.AlgorithmName, identified.AlgorithmVersion) == ("brain_extraction", "1.0.2")
    assert identified.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert "39a7b2b5f799faa1" in identified.AlgorithmParameters
    color = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb(clip=True)
    assert max(abs(a - b) for a, b in zip(color, results.segment().color, strict=True)) <= 2
    assert ds.SegmentationType == "BINARY"


def test_a_loss_in_the_sources_is_carried_on() -> None:
    images = synthetic.series(shape=(4, 8, 8), LossyImageCompression="01", LossyImageCompressionRatio="12.5",
                              LossyImageCompressionMethod="ISO_10918_1")  # fmt: skip
    sources = replace(results.sources(synthetic.instances(images)), lossy=True)
    ds = built(results.findings(results.ball((4, 8, 8))), sources)
    assert (ds.LossyImageCompression, float(ds.LossyImageCompressionRatio)) == ("01", 12.5)


def test_body_part_is_copied_and_never_guessed() -> None:
    with_part = synthetic.series(shape=(3, 8, 8), BodyPartExamined="KNEE", Laterality="L")
    without = synthetic.series(shape=(3, 8, 8), BodyPartExamined=None)
    found = results.findings(results.ball((3, 8, 8)))
    ds = built(found, results.sources(synthetic.instances(with_part)))
    assert ds.BodyPartExamined == "KNEE"
    assert "BodyPartExamined" not in built(found, results.sources(synthetic.instances(without)))


def test_mask_on_another_grid_is_refused() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    with pytest.raises(InferenceError, match=r"\(4, 8, 9\).*\(4, 8, 8\).*another grid"):
        build("seg", results.findings(results.ball((4, 8, 9))), sources, results.provenance())


def test_value_without_description_is_refused() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    with pytest.raises(InferenceError, match="value 7"):
        build("seg", results.findings(results.ball((4, 8, 8), value=7)), sources, results.provenance())


def test_image_without_a_position_is_refused() -> None:
    images = synthetic.series(shape=(1, 8, 8))
    sources = results.sources(synthetic.instances(images))
    del sources.frames[0].instance.header.ImagePositionPatient
    with pytest.raises(GeometryError, match="ImagePositionPatient"):
        build("seg", results.findings(results.ball((1, 8, 8))), sources, results.provenance())


def test_source_without_frame_of_reference_still_gets_its_overlay() -> None:
    images = synthetic.series(shape=(4, 8, 8), FrameOfReferenceUID=None)
    sources = results.sources(synthetic.instances(images))
    labels = results.ball((4, 8, 8))
    ds = built(results.findings(labels), sources)
    np.testing.assert_array_equal(label_maps(ds, sources)[1], labels == 1)
    assert ds.FrameOfReferenceUID.startswith("2.25.")


def test_unknown_source_class_is_referred_to_as_it_is() -> None:
    images = synthetic.series(shape=(3, 8, 8))
    for ds in images:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.3.4.5"  # a private class
    sources = results.sources(synthetic.instances(images))
    made = built(results.findings(results.ball((3, 8, 8))), sources)
    assert {item.ReferencedSOPClassUID for item in made.SourceImageSequence} == {"1.2.3.4.5"}


@pytest.mark.parametrize("label_map", [None, *LABEL_MAP_SYNTAXES])
def test_same_work_gives_the_same_bytes(label_map: str | None) -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    found = results.findings(results.ball((4, 8, 8)))
    made = results.provenance(label_map=label_map)
    first, again = (encode(build("seg", found, sources, made)) for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    assert encode(restate(pydicom.dcmread(io.BytesIO(first)), sources.newest)) == first


@pytest.mark.parametrize("syntax", LABEL_MAP_SYNTAXES)
def test_a_label_map_has_the_numbers_of_its_segments_for_values(syntax: str) -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(5, 20, 15))))  # an odd number of voxels
    labels = np.zeros((5, 20, 15), np.uint16)
    labels[1:4] = 2 * np.arange(300).reshape(20, 15) + 1  # 300 segments do not fit in eight bits
    segments = [results.segment(2 * n + 1, f"Part {n}") for n in range(300)]
    ds = built(results.findings(labels, segments=segments), sources, label_map=syntax)
    assert (ds.file_meta.TransferSyntaxUID, ds.SOPClassUID) == (syntax, "1.2.840.10008.5.1.4.1.1.66.7")
    assert [item.SegmentNumber for item in ds.SegmentSequence] == list(range(301))
    assert ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "125040"  # Background
    assert (ds.NumberOfFrames, ds.PixelPaddingValue) == (3, 0)
    np.testing.assert_array_equal(ds.pixel_array, (labels[1:4] + 1) // 2)
    referred = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in ds.PerFrameFunctionalGroupsSequence]
    assert {one.ReferencedSOPInstanceUID for one in referred} == {
        frame.instance.sop_instance_uid for frame in sources.frames[1:4]
    }


@pytest.mark.parametrize("label_map", [None, ExplicitVRLittleEndian])
def test_the_report_refers_to_the_class_that_the_segmentation_has(label_map: str | None) -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    found, made = results.findings(results.ball((4, 8, 8))), results.provenance(label_map=label_map)
    segmentation, report = (build(output, found, sources, made) for output in ("seg", "sr"))
    assert segmentation is not None
    assert report is not None
    pair = segmentation.SOPClassUID, segmentation.SOPInstanceUID
    named = [one for one in references(report) if one[1] == pair[1]]
    assert len(named) > 1  # the measurements', and the evidence's
    assert set(named) == {pair}


def test_no_run_goes_on_in_the_next_row() -> None:
    plane = np.full((3, 300), 7, dtype=np.uint8)
    plane[1, 5] = 9
    pairs = np.frombuffer(labelmap._segment(plane), np.uint8).reshape(-1, 2)
    lengths = [1 if first == 0 else 257 - int(first) for first in pairs[:, 0]]  # as PS3.5 G.3.2 reads them
    assert lengths == [128, 128, 44, 5, 1, 128, 128, 38, 128, 128, 44]
    assert pairs[:, 1].tolist() == [7] * 4 + [9] + [7] * 6


def test_what_overlaps_is_no_label_map() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    one, other = np.ones((2, 4, 8, 8), np.uint8)
    other[:, 1:] = 0
    found = results.findings(one, other)
    ds = built(found, sources, label_map=ExplicitVRLittleEndian)
    assert (ds.SOPClassUID, ds.SegmentationType, ds.SegmentsOverlap) == (seg.SOP_CLASS_UID, "BINARY", "YES")
    made = results.provenance(label_map=ExplicitVRLittleEndian)
    assert seg.sop_class_uid(found, made) == ds.SOPClassUID
    apart = results.findings(np.where(other, 0, one), other)
    assert seg.sop_class_uid(apart, made) == built(apart, sources, label_map=ExplicitVRLittleEndian).SOPClassUID
    assert seg.sop_class_uid(apart, made) != seg.SOP_CLASS_UID


def test_segment_type_code_is_used_as_given() -> None:
    sources = results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))
    own = Code("X1", "99SITE", "A site's own concept")
    ds = built(results.findings(results.ball((4, 8, 8)), segments=[results.segment(type=own)]), sources)
    item = ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (item.CodeValue, item.CodingSchemeDesignator) == ("X1", "99SITE")
