"""Structured report: Comprehensive 3D SR (PS3.3 A.35.13) after TID 1500, Measurement Report (PS3.16).

The report refers to the segments of the segmentation object by its UID and by tracking UIDs.
"""

from collections.abc import Iterator
from typing import Any

from highdicom.sr import (
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicomai.findings import Findings, NumberedSegment, Outcome, Segment, found_segments, missing_segments
from dicomai.outputs import comparison, document, seg
from dicomai.outputs.common import geometry, stand_in, tracking
from dicomai.outputs.groups import Group, made_by, other_groups
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.words import quantity, statements, value

SOP_CLASS_UID = Comprehensive3DSRStorage

_MOST_SAID = 8
_ABSENT = Code("272519000", "SCT", "Absent")  # CID 240

# That a structure of the body was not found means that it is not in the images, never that the patient lacks it.
_ANATOMY = frozenset({"123037004", "91723000"})


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset:
    """Report what was found, measured, and looked for and not found.

    Args:
        findings: what the model said.
        sources: the images it looked at.
        provenance: who made it; its `outputs` say whether there is a segmentation to refer to.

    Raises:
        InferenceError: a label map has a value that no segment describes.
        GeometryError: an image does not say where it lies.
    """
    found = found_segments(findings)
    missing = list(missing_segments(findings, found))
    segmentation = _segmentation(findings, sources, provenance) if "seg" in provenance.outputs and found else None
    groups: list[Group] = [_found_group(one, findings, sources, provenance, segmentation) for one in found]
    groups += [_missing_group(*one, findings, provenance) for one in missing]
    groups += other_groups(findings, sources, provenance)
    ended = (
        codes.cid6047.AllAlgorithmsSucceededWithFindings
        if findings.outcome is Outcome.FINDINGS
        else codes.cid6047.AllAlgorithmsSucceededWithoutFindings
    )
    compared = comparison.build(findings, provenance)
    algorithm = provenance.algorithm
    made_by_whom = f"Made by an algorithm, {algorithm.name} {algorithm.version}, and not verified by a person."
    return document.build(
        "sr",
        algorithm.report_title or document.MEASURED,
        [made_by_whom, *_summary(findings)],
        groups,
        document.evaluations(ended, _sentences(findings, missing, provenance)),
        sources,
        provenance,
        place=geometry(sources),
        sections=[compared] if compared else (),
        refers_to=[*([segmentation] if segmentation else ()), *comparison.evidence(provenance)],
    )


def _found_group(
    one: NumberedSegment, findings: Findings, sources: Sources, provenance: Provenance, segmentation: Dataset | None
) -> VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations:
    """Report a segment that has voxels: TID 1411 with a reference to it, TID 1501 where no segmentation is made."""
    shared = _identify(one.layer, one.segment, provenance)
    shared["measurements"] = _measurements(one.segment, findings)
    if segmentation is None:
        return MeasurementsAndQualitativeEvaluations(**shared)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=one.number,
            source_series=SourceSeriesForSegmentation(str(sources.header.SeriesInstanceUID)),
        ),
        **shared,
    )


def _missing_group(
    layer: int, segment: Segment, findings: Findings, provenance: Provenance
) -> MeasurementsAndQualitativeEvaluations:
    """Report a segment that was looked for and not found (TID 1501)."""
    absent = segment.category.value not in _ANATOMY
    return MeasurementsAndQualitativeEvaluations(
        measurements=_measurements(segment, findings),
        qualitative_evaluations=[QualitativeEvaluation(segment.type, _ABSENT)] if absent else None,
        **_identify(layer, segment, provenance),
    )


def _identify(layer: int, segment: Segment, provenance: Provenance) -> dict[str, Any]:
    identifier, uid = tracking(provenance, layer, segment)
    return {
        "tracking_identifier": TrackingIdentifier(uid=uid, identifier=identifier),
        "finding_category": segment.category,
        "finding_type": segment.type,
        "finding_sites": [FindingSite(segment.finding_site)],
        "algorithm_id": made_by(provenance),
    }


def _measurements(segment: Segment, findings: Findings) -> list[Measurement] | None:
    """Give a segment's numbers, to six digits: more would be noise on a reader's page."""
    made = [
        Measurement(
            name=one.name,
            value=float(f"{one.value:.6g}"),
            unit=one.unit,
            method=one.method,
            derivation=one.derivation,
        )
        for one in findings.measurements
        if one.segment == segment
    ]
    return made or None


def _summary(findings: Findings) -> Iterator[str]:
    """Say the first of the numbers and answers in one line; all of them stand further below, exactly."""
    said = [f"{one.segment.label}: {quantity(one)} {value(one)}" for one in findings.measurements]
    said += [f"{one.about}: {one.value}" for one in statements(findings)]
    if said:
        more = f"; and {len(said) - _MOST_SAID} more" if len(said) > _MOST_SAID else ""
        yield f"{'; '.join(said[:_MOST_SAID])}{more}."


def _sentences(findings: Findings, missing: list[tuple[int, Segment]], provenance: Provenance) -> Iterator[str]:
    yield from findings.remarks
    if missing:
        yield f"Looked for and not found: {', '.join(segment.label for _, segment in missing)}."
    for predecessor in document.replaced("sr", provenance)[:1]:
        yield f"This report replaces the one in series {predecessor.series_number}."
    if provenance.algorithm.reference:
        yield f"Method: {provenance.algorithm.reference}"


def _segmentation(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset:
    """Stand for the segmentation object of the same run."""
    return stand_in(
        str(sources.header.StudyInstanceUID),
        provenance.uid("seg", "series"),
        seg.sop_class_uid(findings, provenance),
        provenance.uid("seg", "instance"),
    )
