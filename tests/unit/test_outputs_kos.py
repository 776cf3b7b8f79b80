"""Key object selections: the images that matter, and never a rejection."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.errors import InferenceError
from dicomai.findings import Detection, Findings, Outcome, Region, Shape
from dicomai.outputs import Sources, build, encode
from dicomai.outputs.common import geometry
from dicomai.rejection import RejectionNote
from tests import results, synthetic
from tests.rejected import rejection_note

OF_INTEREST = "113000"


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a key object selection and read it back from its bytes."""
    ds = build("kos", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def of(depth: int = 24, **attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=(depth, 8, 10), **attributes)))


def segments(count: int) -> Findings:
    """Make findings of segments on two slices each, of which the second shows more of it."""
    labels = np.zeros((24, 8, 10), np.uint8)
    for n in range(count):
        labels[3 * n, 0, :2] = labels[3 * n + 1, 0, :4] = n + 1
    return results.findings(labels, segments=[results.segment(n + 1, f"Part {n + 1}") for n in range(count)])


def images(ds: Dataset) -> list[Dataset]:
    return [item.ReferencedSOPSequence[0] for item in ds.ContentSequence if item.ValueType == "IMAGE"]


def description(ds: Dataset) -> str:
    (text,) = (item.TextValue for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "113012")
    return str(text)


def test_it_names_the_slice_of_each_segments_largest_area_and_says_so() -> None:
    sources = of(PatientName="Secret^Name")
    ds = built(segments(4), sources)
    expected = [sources.frames[3 * n + 1].instance for n in range(4)]
    assert [item.ReferencedSOPInstanceUID for item in images(ds)] == [one.sop_instance_uid for one in expected]
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == ds.StudyInstanceUID == sources.header.StudyInstanceUID
    assert series.SeriesInstanceUID == sources.header.SeriesInstanceUID
    assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in series.ReferencedSOPSequence] == [
        (one.sop_class_uid, one.sop_instance_uid) for one in expected
    ]
    said = description(ds)
    assert said.startswith("AI, unverified: brain_extraction 1.0.2. Largest area of Part 1: Im 2. ")
    assert "Secret" not in said


def test_what_is_on_none_of_the_images_is_named() -> None:
    ds = built(segments(8), of())
    assert len(images(ds)) == 6
    assert "Found, but on none of these images: Part " in description(ds)


def test_frames_of_a_multi_frame_source_are_named() -> None:
    whole = results.sources(synthetic.instances([synthetic.enhanced(shape=(6, 8, 10))]))
    part = Sources(whole.frames[2:5], whole.newest, lossy=False)
    ds = built(results.findings(np.ones((3, 8, 10), np.uint8)), part)
    (image,) = images(ds)
    assert list(image.ReferencedFrameNumber) == [3, 4, 5]
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert evidence.ReferencedSOPInstanceUID == image.ReferencedSOPInstanceUID


def test_it_is_never_taken_for_a_rejection_note() -> None:
    ds = built(segments(2), of())
    assert ds.ConceptNameCodeSequence[0].CodeValue == OF_INTEREST
    assert RejectionNote.of(ds) is None
    assert RejectionNote.of(rejection_note([of().frames[0].instance.header])) is not None


def test_it_says_who_chose_and_has_the_patients_attributes_as_received() -> None:
    ds = built(segments(2), of(SeriesNumber=3, PatientName="Odd^^^^^^Name"))
    assert (ds.Modality, ds.SeriesNumber) == ("KO", 9003)
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified"
    assert str(ds.PatientName) == "Odd^^^^^^Name"
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    assert ds.DeviceSerialNumber == results.provenance().installation
    assert [item.UID for item in ds.ContentSequence if item.ValueType == "UIDREF"] == [results.provenance().device_uid]


def test_same_work_gives_the_same_bytes_and_nothing_found_gives_none() -> None:
    sources = of()
    one, two = (build("kos", segments(3), sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    assert build("kos", results.findings(np.zeros((24, 8, 10), np.uint8)), sources, results.provenance()) is None
    with pytest.raises(InferenceError, match="another"):
        built(results.findings(np.ones((5, 8, 9), np.uint8)), sources)


def test_what_was_detected_without_a_mask_is_named_where_its_centre_lies() -> None:
    sources = of()
    row, column = np.asarray(geometry(sources).orientation).reshape(2, 3)
    places = np.asarray(geometry(sources).positions) + 4 * 0.6 * row + 3 * 0.8 * column
    beyond = places[-1] + (places[-1] - places[-2])
    nodule = Code("27925004", "SCT", "Nodule")
    made = [
        Detection(nodule, results.ABNORMALITY, nodule, Region(Shape.POINT, tuple(map(float, at))))
        for at in (places[17], beyond)
    ]
    ds = built(Findings((), (), Outcome.FINDINGS, detections=tuple(made)), sources)
    assert [item.ReferencedSOPInstanceUID for item in images(ds)] == [
        sources.frames[z].instance.sop_instance_uid for z in (17, 23)
    ]
    assert "Nearest to the centre of Nodule: Im 18. Found, but on none of these images: Nodule (outside" in (
        description(ds)
    )
