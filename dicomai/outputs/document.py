"""What the node's structured reports share: Comprehensive 3D SR (PS3.3 A.35.13) after TID 1500 (PS3.16).

They are COMPLETE, because the algorithm adds nothing to them later (PS3.3 C.17.2), UNVERIFIED and PRELIMINARY, because
no person has seen them.
"""

from collections.abc import Iterable, Iterator, Sequence

import highdicom as hd
from highdicom.sr import (
    CodeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    LanguageOfContentItemAndDescendants,
    NumContentItem,
    ObservationContext,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Sequence as DicomSequence
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomai.outputs import explicit
from dicomai.outputs.common import MANUFACTURER, Geometry, code_item, equipment, finish, observer, stand_in
from dicomai.outputs.provenance import Predecessor, Provenance, Sources, derived_uid
from dicomai.study import Instance

_SCHEME = "99DICOMAI"

# CID 7021 may be extended, and has no title that says what these are. Of those that it has, OHIF opens no report with
# groups that lie on a segment if the title is (126000, DCM, Imaging Measurement Report): its page stays blank.
MEASURED = Code("AI-MEASUREMENTS", _SCHEME, "AI Measurement Report, unverified")
NOT_ANALYSED = Code("AI-NOT-ANALYSED", _SCHEME, "AI Report: Not Analysed")

_REPLACED = {"sr": ("sr", "report"), "report": ("report",)}  # that nothing was found out replaces no result

CONTAINS = RelationshipTypeValues.CONTAINS

_SOURCE_ITEM = code_item(Code("260753009", "SCT", "Source"))
_QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_PIXELS = Code("{pixels}", "UCUM", "Pixels")
_ENGLISH = hd.sr.CodedConcept("en", "RFC5646", "English")

_ACQUISITION_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT


def build(
    output: str,
    title: Code,
    headlines: Sequence[str],
    groups: Sequence[ContentSequence],
    evaluations: ContainerContentItem,
    sources: Sources,
    provenance: Provenance,
    *,
    place: Geometry | None,
    sections: Sequence[ContainerContentItem] = (),
    refers_to: Sequence[Dataset] = (),
) -> Dataset:
    """Put a report together.

    Args:
        output: which one it is, 'sr' or 'report'.
        title: `MEASURED` or `NOT_ANALYSED`, or one of CID 7021.
        headlines: the sentences that a reader must see before all else; viewers list every image before the numbers.
        groups: measurement groups (TID 1411, 1410, 1501); may be none.
        evaluations: how the analysis ended, see `evaluations`.
        sources: the images that it is about.
        provenance: who made it.
        place: where the images lie; None where that is not known.
        sections: what stands between those sentences and the images.
        refers_to: what it refers to beside the images, see `common.stand_in`.
    """
    root = ContainerContentItem(title, template_id="1500")
    by = observer(provenance.device_uid, provenance.installation)
    content = ContentSequence(
        [*LanguageOfContentItemAndDescendants(_ENGLISH), *ObservationContext(observer_device_context=by)]
    )
    for procedure in _procedures(sources.newest):
        content.append(CodeContentItem(codes.DCM.ProcedureReported, procedure, RelationshipTypeValues.HAS_CONCEPT_MOD))
    root.ContentSequence = content
    # highdicom would copy all of the content twice and walk it twice, and look at each image: it gets the beginning.
    made = Comprehensive3DSR(
        evidence=[_first_image(sources), *refers_to],
        content=ContentSequence([root], is_root=True),
        series_instance_uid=provenance.uid(output, "series"),
        series_number=provenance.series_number(output),
        sop_instance_uid=provenance.uid(output, "instance"),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=_previous(replaced(output, provenance)),
        **equipment(provenance),
    )
    first = [TextContentItem(codes.DCM.Comment, one, CONTAINS) for one in headlines]  # TID 1500 is extensible
    rest = [*first, *sections, _image_library(sources, place), *_imaging_measurements(groups), evaluations]
    for item in rest:
        _separate(item)
    if title.scheme_designator == _SCHEME:
        made.CodingSchemeIdentificationSequence = [_scheme()]
    made.ContinuityOfContent = "SEPARATE"
    made.ContentSequence = [*content, *rest]
    whole = finish(made, sources, provenance, output)
    # Only now: on its way `finish` would look at every image.
    _complete_library(whole.ContentSequence, sources)
    _complete_evidence(whole.CurrentRequestedProcedureEvidenceSequence[0], sources)
    return whole


def evaluations(ended: Code, sentences: Iterable[str]) -> ContainerContentItem:
    """Say how the analysis ended (CID 6047), and in sentences what a reader must know (TID 1500, last rows)."""
    container = ContainerContentItem(_QUALITATIVE_EVALUATIONS, relationship_type=CONTAINS)
    container.ContentSequence = ContentSequence(
        [CodeContentItem(codes.DCM.CADProcessingAndFindingsSummary, ended, CONTAINS)]
    )
    for sentence in sentences:
        container.ContentSequence.append(TextContentItem(codes.DCM.Comment, sentence, CONTAINS))
    return container


def replaced(output: str, provenance: Provenance) -> list[Predecessor]:
    """Give the reports that a report of this run replaces, the newest first."""
    return [one for one in provenance.supersedes if one.output in _REPLACED[output]]


def _scheme() -> Dataset:
    """Say whose codes the titles are (Coding Scheme Identification Sequence, PS3.3 C.12.1)."""
    item = Dataset()
    item.CodingSchemeDesignator = _SCHEME
    item.CodingSchemeUID = derived_uid("coding scheme", _SCHEME)
    item.CodingSchemeName = "Titles of reports that dicomai makes"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _imaging_measurements(groups: Sequence[ContentSequence]) -> Iterator[ContainerContentItem]:
    """Hold the measurement groups, if there are any (TID 1500, row 6)."""
    if groups:
        container = ContainerContentItem(codes.DCM.ImagingMeasurements, relationship_type=CONTAINS)
        container.ContentSequence = ContentSequence([item for group in groups for item in group])
        yield container


def _procedures(newest: Dataset) -> list[Code]:
    """Give the imaging procedure that was reported on: the study's own codes, or in general an imaging procedure.

    A code that breaks the standard (PS3.3 8.8), as local ones do, is left out: it would make the report break it too.
    """
    given = newest.get("ProcedureCodeSequence")
    procedures = []
    for item in given if isinstance(given, DicomSequence) else ():  # some send a text there
        value, scheme = item.get("CodeValue") or item.get("LongCodeValue"), item.get("CodingSchemeDesignator")
        meaning, version = item.get("CodeMeaning"), item.get("CodingSchemeVersion")
        limits = ((value, None), (scheme, 16), (meaning, 64), (version or "-", 16))
        if all(isinstance(text, str) and text.strip() and len(text) <= (most or len(text)) for text, most in limits):
            procedures.append(Code(value, scheme, meaning, version or None))
    return procedures or [_IMAGING_PROCEDURE]


def _image_library(sources: Sources, place: Geometry | None) -> ContainerContentItem:
    """Begin the list of the images that were analysed (TID 1600) with what they share (TID 1602)."""
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=CONTAINS)
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=CONTAINS)
    group.add_new("ContentSequence", "SQ", [*_descriptors(sources.header, place)])
    library.ContentSequence = ContentSequence([group])
    return library


def _complete_library(content: Sequence[Dataset], sources: Sources) -> None:
    """Name every source image in the image library, which `_image_library` began."""
    name = codes.DCM.ImageLibrary.value
    (library,) = (item for item in content if item.ConceptNameCodeSequence[0].get("CodeValue") == name)
    shown: dict[str, list[int]] = {}
    for frame in sources.frames:
        numbers = shown.setdefault(frame.instance.sop_instance_uid, [])
        numbers += [frame.number] if frame.number is not None else []
    (group,) = library.ContentSequence
    descriptors = [explicit.encode(item) for item in group.ContentSequence]
    rest = explicit.encode(_image())
    images = (_reference(instance, shown[instance.sop_instance_uid]) for instance in sources.instances)
    items = (explicit.sequence("ReferencedSOPSequence", [image]) + rest for image in images)
    explicit.put(group, "ContentSequence", [*descriptors, *items])
    explicit.mark(library)


def _image() -> Dataset:
    """Make a content item of an image, all but the reference."""
    item = Dataset()
    item.RelationshipType, item.ValueType = CONTAINS.value, "IMAGE"
    item.ConceptNameCodeSequence = [_SOURCE_ITEM]
    return item


def _reference(instance: Instance, frame_numbers: list[int]) -> bytes:
    numbers = Dataset()
    if frame_numbers:
        numbers.ReferencedFrameNumber = frame_numbers
    return explicit.image(instance) + explicit.encode(numbers)


def _descriptors(header: Dataset, place: Geometry | None) -> Iterator[hd.sr.ContentItem]:
    modality = next((code for code in _modalities() if code.value == header.get("Modality")), None)
    if modality is not None:
        yield CodeContentItem(codes.DCM.Modality, modality, _ACQUISITION_CONTEXT)
    if header.get("FrameOfReferenceUID"):
        uid = str(header.FrameOfReferenceUID)
        yield UIDRefContentItem(codes.DCM.FrameOfReferenceUID, uid, _ACQUISITION_CONTEXT)
    if place is None:
        return
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


def _first_image(sources: Sources) -> Dataset:
    instance, header = sources.instances[0], sources.header
    study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
    return stand_in(study, series, instance.sop_class_uid, instance.sop_instance_uid)


def _complete_evidence(study: Dataset, sources: Sources) -> None:
    """Name every source image where the first of them is named (PS3.3 C.17.2)."""
    uid = str(sources.header.SeriesInstanceUID)
    for series in study.ReferencedSeriesSequence:
        if series.SeriesInstanceUID == uid:
            images = (explicit.image(instance) for instance in sources.instances)
            explicit.put(series, "ReferencedSOPSequence", images)
    explicit.mark(study)


def _separate(item: Dataset) -> None:
    """Mark every container's content as separate items, which they are (PS3.3 C.17.3.1); viewers show them so."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for child in item.get("ContentSequence") or ():
        _separate(child)


def _previous(reports: Sequence[Predecessor]) -> list[Dataset] | None:
    """Name the reports that this one replaces (Predecessor Documents Sequence, PS3.3 C.17.2)."""
    made = []
    for one in reports:
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
        ds.StudyInstanceUID, ds.SeriesInstanceUID = one.study_instance_uid, one.series_instance_uid
        made.append(ds)
    return made or None
