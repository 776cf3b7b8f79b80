"""Structured report: Comprehensive 3D SR (PS3.3 A.35.13) after TID 1500, Measurement Report (PS3.16).

The report refers to the segments of the segmentation object by its UID and by tracking UIDs. It is COMPLETE, because
the algorithm adds nothing to it later (PS3.3 C.17.2), UNVERIFIED and PRELIMINARY, because no person has seen it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import highdicom as hd
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicomai.findings import Findings, NumberedSegment, Outcome, Segment, found_segments, missing_segments
from dicomai.outputs import seg
from dicomai.outputs.common import (
    MANUFACTURER,
    MODEL_NAME,
    equipment,
    finish,
    geometry,
    tracking,
)
from dicomai.outputs.provenance import Predecessor, Provenance, Sources

SOP_CLASS_UID = Comprehensive3DSRStorage

_SOURCE = Code("260753009", "SCT", "Source")
_QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_ABSENT = Code("272519000", "SCT", "Absent")  # CID 240
_PIXELS = Code("{pixels}", "UCUM", "Pixels")

# That a structure of the body was not found means that it is not in the images, never that the patient lacks it.
_ANATOMY = frozenset({"123037004", "91723000"})

_ACQUISITION_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT
_CONTAINS = RelationshipTypeValues.CONTAINS


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
    with_seg = "seg" in provenance.outputs and bool(found)
    groups = [_found_group(one, findings, sources, provenance, with_seg) for one in found]
    groups += [_missing_group(*one, findings, provenance) for one in missing_segments(findings)]
    report = MeasurementReport(
        observation_context=_observation_context(provenance),
        procedure_reported=_procedures(sources.newest),
        imaging_measurements=groups,
    )
    content = report[0].ContentSequence
    content.insert(len(content) - 1, _image_library(sources))
    content.append(_evaluations(findings, provenance))
    _separate(report[0])
    evidence = [*_evidence(sources), *([_segmentation(sources, provenance)] if with_seg else [])]
    # highdicom would copy all of the content twice and walk it twice: it gets the observer only.
    report[0].ContentSequence = ContentSequence(list(content)[:1])
    made = Comprehensive3DSR(
        evidence=evidence,
        content=report,
        series_instance_uid=provenance.uid("sr", "series"),
        series_number=provenance.series_number("sr"),
        sop_instance_uid=provenance.uid("sr", "instance"),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=_previous(provenance.supersedes),
        **equipment(provenance),
    )
    made.ContentSequence = content
    return finish(made, sources, provenance, "sr")


def _observation_context(provenance: Provenance) -> ObservationContext:
    """Name the observer: this node (TID 1004)."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=provenance.device_uid,
                name="dicomai",
                manufacturer_name=MANUFACTURER,
                model_name=MODEL_NAME,
                serial_number=provenance.installation,
            ),
        )
    )


def _procedures(newest: Dataset) -> list[Code]:
    """Give the imaging procedure that was reported on: the study's own codes, or in general an imaging procedure.

    A code that breaks the standard (PS3.3 8.8), as local ones do, is left out: it would make the report break it too.
    """
    procedures = []
    for item in newest.get("ProcedureCodeSequence") or ():
        value, scheme = item.get("CodeValue") or item.get("LongCodeValue"), item.get("CodingSchemeDesignator")
        meaning, version = item.get("CodeMeaning"), item.get("CodingSchemeVersion")
        limits = ((value, None), (scheme, 16), (meaning, 64), (version or "-", 16))
        if all(isinstance(text, str) and text.strip() and len(text) <= (most or len(text)) for text, most in limits):
            procedures.append(Code(value, scheme, meaning, version or None))
    return procedures or [_IMAGING_PROCEDURE]


def _found_group(
    one: NumberedSegment, findings: Findings, sources: Sources, provenance: Provenance, with_seg: bool
) -> VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations:
    """Report a segment that has voxels: TID 1411 with a reference to it, TID 1501 where no segmentation is made."""
    shared = _identify(one.layer, one.segment, provenance)
    shared["measurements"] = _measurements(one.segment, findings)
    if not with_seg:
        return MeasurementsAndQualitativeEvaluations(**shared)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(
            sop_class_uid=seg.SOP_CLASS_UID,
            sop_instance_uid=provenance.uid("seg", "instance"),
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
    algorithm = provenance.algorithm
    return {
        "tracking_identifier": TrackingIdentifier(uid=uid, identifier=identifier),
        "finding_category": segment.category,
        "finding_type": segment.type,
        "finding_sites": [FindingSite(segment.finding_site)],
        "algorithm_id": AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[f"weights={algorithm.weights_digest}"],
            manufacturer=algorithm.manufacturer,
        ),
    }


def _measurements(segment: Segment, findings: Findings) -> list[Measurement] | None:
    """Give a segment's numbers, to six digits: more would be noise on a reader's page."""
    made = [
        Measurement(name=one.name, value=float(f"{one.value:.6g}"), unit=one.unit, method=one.method)
        for one in findings.measurements
        if one.segment == segment
    ]
    return made or None


def _image_library(sources: Sources) -> ContainerContentItem:
    """List the images that were analysed (TID 1600); what they share is said once, for the group (TID 1602)."""
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=_CONTAINS)
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
    group.ContentSequence = ContentSequence([*_descriptors(sources)])
    for instance in sources.instances:
        numbers = [frame.number for frame in sources.frames if frame.instance is instance and frame.number]
        group.ContentSequence.append(
            ImageContentItem(
                name=_SOURCE,
                referenced_sop_class_uid=instance.sop_class_uid,
                referenced_sop_instance_uid=instance.sop_instance_uid,
                referenced_frame_numbers=numbers or None,
                relationship_type=_CONTAINS,
            )
        )
    library.ContentSequence = ContentSequence([group])
    return library


def _descriptors(sources: Sources) -> Iterator[hd.sr.ContentItem]:
    header, place = sources.header, geometry(sources)
    modality = next((code for code in _modalities() if code.value == header.get("Modality")), None)
    if modality is not None:
        yield CodeContentItem(codes.DCM.Modality, modality, _ACQUISITION_CONTEXT)
    if header.get("FrameOfReferenceUID"):
        uid = str(header.FrameOfReferenceUID)
        yield UIDRefContentItem(codes.DCM.FrameOfReferenceUID, uid, _ACQUISITION_CONTEXT)
    rows, columns = place.pixel_spacing
    for name, value, unit in (
        (codes.DCM.PixelDataRows, int(header.Rows), _PIXELS),
        (codes.DCM.PixelDataColumns, int(header.Columns), _PIXELS),
        (codes.DCM.HorizontalPixelSpacing, columns, codes.UCUM.Millimeter),
        (codes.DCM.VerticalPixelSpacing, rows, codes.UCUM.Millimeter),
        (codes.DCM.SpacingBetweenSlices, place.spacing, codes.UCUM.Millimeter),
        (codes.DCM.SliceThickness, place.slice_thickness, codes.UCUM.Millimeter),
    ):
        if value is not None:
            yield NumContentItem(name, value, unit, relationship_type=_ACQUISITION_CONTEXT)


def _modalities() -> list[Code]:
    return [getattr(codes.cid29, keyword) for keyword in codes.cid29.dir()]


def _evaluations(findings: Findings, provenance: Provenance) -> ContainerContentItem:
    """Say how the analysis ended (CID 6047), and in sentences what a reader must know (TID 1500, last rows)."""
    container = ContainerContentItem(_QUALITATIVE_EVALUATIONS, relationship_type=_CONTAINS)
    ended = (
        codes.cid6047.AllAlgorithmsSucceededWithFindings
        if findings.outcome is Outcome.FINDINGS
        else codes.cid6047.AllAlgorithmsSucceededWithoutFindings
    )
    container.ContentSequence = ContentSequence(
        [CodeContentItem(codes.DCM.CADProcessingAndFindingsSummary, ended, _CONTAINS)]
    )
    for sentence in _sentences(findings, provenance):
        container.ContentSequence.append(TextContentItem(codes.DCM.Comment, sentence, _CONTAINS))
    return container


def _sentences(findings: Findings, provenance: Provenance) -> Iterator[str]:
    algorithm = provenance.algorithm
    yield f"Made by an algorithm, {algorithm.name} {algorithm.version}, and not verified by a person."
    yield from findings.remarks
    missing = ", ".join(segment.label for _, segment in missing_segments(findings))
    if missing:
        yield f"Looked for and not found: {missing}."
    predecessor = provenance.predecessor("sr")
    if predecessor is not None:
        yield f"This report replaces the one in series {predecessor.series_number}."
    if algorithm.reference:
        yield f"Method: {algorithm.reference}"


def _separate(item: Dataset) -> None:
    """Mark every container's content as separate items, which they are (PS3.3 C.17.3.1); viewers show them so."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence") or ():
        _separate(child)


def _evidence(sources: Sources) -> list[Dataset]:
    """Stand for the source images: identifiers only; `finish` puts the patient and the study in."""
    header = sources.header
    return [
        _stand_in(header, instance.sop_class_uid, instance.sop_instance_uid, str(header.SeriesInstanceUID))
        for instance in sources.instances
    ]


def _segmentation(sources: Sources, provenance: Provenance) -> Dataset:
    """Stand for the segmentation object of the same run."""
    return _stand_in(
        sources.header,
        seg.SOP_CLASS_UID,
        provenance.uid("seg", "instance"),
        provenance.uid("seg", "series"),
    )


def _stand_in(header: Dataset, sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, sop_instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = str(header.StudyInstanceUID), series_instance_uid
    ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = None
    ds.AccessionNumber = ds.StudyID = ds.StudyDate = ds.StudyTime = None
    return ds


def _previous(supersedes: Sequence[Predecessor]) -> list[Dataset] | None:
    """Name the reports that this one replaces (Predecessor Documents Sequence, PS3.3 C.17.2); only reports."""
    made = []
    for one in supersedes:
        if one.output == "sr":
            ds = Dataset()
            ds.SOPClassUID, ds.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
            ds.StudyInstanceUID, ds.SeriesInstanceUID = one.study_instance_uid, one.series_instance_uid
            made.append(ds)
    return made or None
