"""The report: what was found, measured, and looked for and not found; what made it; what it refers to."""

import io
from collections.abc import Iterator
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.findings import Findings, Layer, Measurement, Outcome
from dicomai.outputs import Predecessor, Sources, build, encode
from dicomai.outputs.common import geometry
from tests import results, synthetic

SHAPE = (4, 8, 8)


@pytest.fixture
def sources() -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=SHAPE)))


def report(findings: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a report and read it back from its bytes."""
    ds = build("sr", findings, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def items(ds: Dataset, name: str | None = None) -> list[Dataset]:
    """Find content items by the code value of their name, anywhere in the tree."""

    def walk(item: Dataset) -> Iterator[Dataset]:
        for child in item.get("ContentSequence") or ():
            yield child
            yield from walk(child)

    return [item for item in walk(ds) if name in (None, item.ConceptNameCodeSequence[0].CodeValue)]


def texts(ds: Dataset, name: str) -> list[str]:
    return [str(item.TextValue) for item in items(ds, name)]


def test_volume_is_reported_of_the_segment(sources: Sources) -> None:
    ds = report(results.findings(results.ball(SHAPE)), sources)
    seg = build("seg", results.findings(results.ball(SHAPE)), sources, results.provenance())
    assert seg is not None
    (group,) = hd.sr.Comprehensive3DSR.from_dataset(ds).content.get_volumetric_roi_measurement_groups()
    (measurement,) = group.get_measurements()
    assert (measurement.name.value, measurement.value, measurement.unit.value) == ("118565006", 1292.12, "cm3")
    assert group.finding_type == results.INTRACRANIAL
    assert [site.value for site in group.finding_sites] == [results.INTRACRANIAL]
    described = seg.SegmentSequence[0]
    assert (group.tracking_uid, group.tracking_identifier) == (described.TrackingUID, described.TrackingID)
    (image,) = items(ds, "121191")
    sop = image.ReferencedSOPSequence[0]
    assert (sop.ReferencedSOPInstanceUID, sop.ReferencedSOPClassUID) == (seg.SOPInstanceUID, seg.SOPClassUID)
    assert sop.ReferencedSegmentNumber == 1
    (series,) = items(ds, "121232")
    assert sources.header.SeriesInstanceUID == series.UID


def test_report_says_what_made_it_and_that_nobody_has_checked_it(sources: Sources) -> None:
    remark = "brain_extraction was validated for T1-weighted MR; this series is outside of that."
    ds = report(
        results.findings(results.ball(SHAPE), remarks=[remark]),
        sources,
        algorithm=results.algorithm(reference="Fisch et al. 2024"),
    )
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    comments = texts(ds, "121106")
    assert "not verified by a person" in comments[0]
    assert remark in comments
    assert "Method: Fisch et al. 2024" in comments
    assert texts(ds, "111001") == ["brain_extraction"]
    assert texts(ds, "111003") == ["1.0.2"]
    assert texts(ds, "122405") == ["University of Somewhere"]
    assert texts(ds, "121013") == ["dicomai"]
    assert [item.UID for item in items(ds, "121012")] == [results.provenance().device_uid]
    (summary,) = items(ds, "111017")
    assert summary.ConceptCodeSequence[0].CodeValue == "111242"
    assert ds.ReferencedPerformedProcedureStepSequence == []
    assert ds.PerformedProcedureCodeSequence == []


def test_every_container_holds_separate_items(sources: Sources) -> None:
    ds = report(results.findings(results.ball(SHAPE)), sources)
    containers = [ds, *(item for item in items(ds) if item.ValueType == "CONTAINER")]
    assert len(containers) >= 6
    assert {item.ContinuityOfContent for item in containers} == {"SEPARATE"}


def test_evidence_names_every_source_image_and_the_segmentation(sources: Sources) -> None:
    ds = report(results.findings(results.ball(SHAPE)), sources)
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == sources.header.StudyInstanceUID
    named = {
        series.SeriesInstanceUID: {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
        for series in study.ReferencedSeriesSequence
    }
    provenance = results.provenance()
    assert named == {
        sources.header.SeriesInstanceUID: {instance.sop_instance_uid for instance in sources.instances},
        provenance.uid("seg", "series"): {provenance.uid("seg", "instance")},
    }
    library = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(ds, "260753009")}
    assert library == {instance.sop_instance_uid for instance in sources.instances}


def test_image_library_names_frames_of_a_multi_frame_source() -> None:
    whole = results.sources(synthetic.instances([synthetic.enhanced(shape=(6, 8, 8))]))
    part = Sources(whole.frames[1:5], whole.newest, lossy=False)
    (image,) = items(report(results.findings(results.ball(SHAPE)), part), "260753009")
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == [2, 3, 4, 5]


def test_without_a_segmentation_the_report_refers_to_none(sources: Sources) -> None:
    ds = report(results.findings(results.ball(SHAPE)), sources, outputs=("sr",))
    assert items(ds, "121191") == []
    assert len(ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence) == 1
    (volume,) = items(ds, "118565006")
    assert float(volume.MeasuredValueSequence[0].NumericValue) == 1292.12


def test_negative_result_says_what_was_looked_for(sources: Sources) -> None:
    tumour = results.segment(
        1, "Tumour", category=results.ABNORMALITY, type=Code("108369006", "SCT", "Neoplasm"),
        finding_site=Code("12738006", "SCT", "Brain"),
    )  # fmt: skip
    nothing = Findings((Layer(np.zeros(SHAPE, np.uint8), (tumour,)),), (), Outcome.NEGATIVE)
    ds = report(nothing, sources)
    (summary,) = items(ds, "111017")
    assert summary.ConceptCodeSequence[0].CodeValue == "111241"
    assert "Looked for and not found: Tumour." in texts(ds, "121106")
    (absent,) = items(ds, "108369006")
    assert absent.ConceptCodeSequence[0].CodeValue == "272519000"
    assert items(ds, "121191") == []


def test_structure_that_was_not_found_is_never_called_absent(sources: Sources) -> None:
    parts = [results.segment(1, "Left kidney"), results.segment(2, "Right kidney")]
    ds = report(results.findings(results.ball(SHAPE, value=2), segments=parts), sources)
    assert "Looked for and not found: Left kidney." in texts(ds, "121106")
    assert "272519000" not in str(ds)
    assert len(items(ds, "121191")) == 1


def test_measurement_bears_its_method(sources: Sources) -> None:
    one = results.segment()
    method = Code("126030", "DCM", "Sum of segmented voxel volumes")
    measured = Measurement(results.VOLUME, 12.0, results.CM3, one, method)
    ds = report(Findings((Layer(results.ball(SHAPE), (one,)),), (measured,), Outcome.FINDINGS), sources)
    (volume,) = items(ds, "118565006")
    assert [i.ConceptCodeSequence[0].CodeValue for i in items(volume, "370129005")] == ["126030"]


def test_procedure_reported_is_the_imaging_procedure() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "MRHEAD", "99SITE", "MR head"
    images = synthetic.series(shape=SHAPE, ProcedureCodeSequence=[code])
    found = results.findings(results.ball(SHAPE))
    (own,) = items(report(found, results.sources(synthetic.instances(images))), "121058")
    assert own.ConceptCodeSequence[0].CodeValue == "MRHEAD"
    plain = results.sources(synthetic.instances(synthetic.series(shape=SHAPE)))
    (general,) = items(report(found, plain), "121058")
    assert general.ConceptCodeSequence[0].CodeValue == "363679005"


def test_report_names_the_report_that_it_replaces(sources: Sources) -> None:
    old = (
        Predecessor("seg", "1.1", "1.2", "1.3", "1.2.840.10008.5.1.4.1.1.66.4", 9000),
        Predecessor("sr", str(sources.header.StudyInstanceUID), "1.5", "1.6", "1.2.840.10008.5.1.4.1.1.88.34", 9001),
    )  # fmt: skip
    ds = report(results.findings(results.ball(SHAPE)), sources, supersedes=old, series_numbers=frozenset({9000, 9001}))
    (study,) = ds.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert (series.SeriesInstanceUID, series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) == ("1.5", "1.6")
    assert any("series 9001" in text for text in texts(ds, "121106"))
    assert ds.SeriesDescription.endswith("supersedes S9001")
    assert ds.SeriesNumber == 9003


def test_first_report_replaces_none(sources: Sources) -> None:
    assert "PredecessorDocumentsSequence" not in report(results.findings(results.ball(SHAPE)), sources)


def test_same_work_gives_the_same_bytes(sources: Sources) -> None:
    found = results.findings(results.ball(SHAPE))
    first, again = (encode(build("sr", found, sources, results.provenance())) for _ in range(2))  # type: ignore[arg-type]
    assert first == again


@pytest.mark.filterwarnings("ignore:.*exceeds the maximum length:UserWarning")
@pytest.mark.parametrize(
    "broken",
    [
        {"CodeMeaning": "M" * 65},
        {"CodingSchemeDesignator": "99" + "L" * 15},
        {"CodeValue": None, "URNCodeValue": "urn:oid:1.2.3", "CodingSchemeDesignator": None},
        {"CodeMeaning": None},
    ],
)
def test_a_procedure_code_that_breaks_the_standard_does_not_cost_the_report(broken: dict[str, str | None]) -> None:
    item = Dataset()
    good = {"CodeValue": "MRHEAD", "CodingSchemeDesignator": "99LOCAL", "CodeMeaning": "MR of the head"}
    for keyword, value in (good | broken).items():
        if value is not None:
            setattr(item, keyword, value)
    images = synthetic.series(shape=SHAPE, ProcedureCodeSequence=[item])
    ds = report(results.findings(results.ball(SHAPE)), results.sources(synthetic.instances(images)))
    (procedure,) = items(ds, "121058")
    assert procedure.ConceptCodeSequence[0].CodeValue == "363679005"


def test_a_slice_thickness_that_cannot_be_is_not_passed_on() -> None:
    sources = results.sources(
        synthetic.instances(synthetic.series(shape=SHAPE, spacing=(2, 1, 1), SliceThickness="-3"))
    )
    assert geometry(sources).slice_thickness == pytest.approx(2.0)


def test_the_title_is_not_the_one_that_viewers_stumble_over_unless_the_bundle_says_so(sources: Sources) -> None:
    """OHIF shows a blank page under (126000, DCM) for groups that lie on a segment."""
    found = results.findings(results.ball(SHAPE))
    ds = report(found, sources)
    (title,) = ds.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("AI-MEASUREMENTS", "99DICOMAI")
    assert [item.CodingSchemeDesignator for item in ds.CodingSchemeIdentificationSequence] == ["99DICOMAI"]
    oncology = Code("126001", "DCM", "Oncology Measurement Report")
    stated = report(found, sources, algorithm=results.algorithm(report_title=oncology))
    assert stated.ConceptNameCodeSequence[0].CodeValue == "126001"
    assert "CodingSchemeIdentificationSequence" not in stated


def test_what_made_it_stands_before_the_images_and_the_numbers(sources: Sources) -> None:
    ds = report(results.findings(results.ball(SHAPE)), sources)
    contained = [item for item in ds.ContentSequence if item.RelationshipType == "CONTAINS"]
    assert [item.ConceptNameCodeSequence[0].CodeValue for item in contained] == [
        "121106", "121106", "111028", "126010", "C0034375",
    ]  # fmt: skip
    assert "not verified by a person" in contained[0].TextValue
    assert contained[1].TextValue == "Intracranial structure: Volume 1292 cm3."


def test_the_report_names_the_class_that_the_segmentation_has(sources: Sources) -> None:
    found = results.findings(results.ball(SHAPE))
    provenance = results.provenance(label_map="1.2.840.10008.1.2.5")
    seg, sr = build("seg", found, sources, provenance), build("sr", found, sources, provenance)
    assert seg is not None
    assert sr is not None
    (image,) = items(sr, "121191")
    assert image.ReferencedSOPSequence[0].ReferencedSOPClassUID == seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    evidence = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {item.ReferencedSOPClassUID for series in evidence for item in series.ReferencedSOPSequence}
    assert seg.SOPClassUID in named
