"""RT Structure Set (PS3.3 A.19): the segments as contours, for treatment planning.

Each segment is an ROI; its contours are CLOSED_PLANAR polygons in the slices' own planes, whose corners are corners of
voxels (`contours`): their area is that of the mask, and a reader that takes the voxels whose centres they enclose gets
the mask back. A hole is joined to the outline around it by a channel without width ('keyhole', PS3.3 C.8.8.6.3), which
also readers older than CLOSED_PLANAR_XOR draw rightly. The approval is UNAPPROVED: no person has seen it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from dicomai.findings import Findings, NumberedSegment, found_segments
from dicomai.outputs.common import (
    Geometry,
    begin,
    check_shapes,
    code_item,
    finish,
    frame_of_reference,
    geometry,
    identification,
    reference,
    references,
    tracking,
)
from dicomai.outputs.contours import Polygon, masks, polygons, speckled
from dicomai.outputs.keyimage import areas
from dicomai.outputs.provenance import Predecessor, Provenance, Sources

SOP_CLASS_UID = RTStructureSetStorage

_DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # retired, and still what every planning system expects here
_CONTOUR_DATA = Tag("ContourData")
_MOST_CORNERS = 65534 // (3 * 17)  # of a polygon: three decimal strings each, in 16 bits of length (PS3.3 C.8.8.6)
_ANATOMY = frozenset({"123037004", "91723000"})  # categories (CID 7150): body structure, anatomical structure


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Encode the segments as a structure set; None where no segment has a voxel, or where they have too many parts.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
    """
    check_shapes(findings, sources)
    found = found_segments(findings)
    if not found or speckled(findings, found, areas(findings)):
        return None
    uid = frame_of_reference(sources, provenance)
    made = _structure_set(provenance)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = uid, None
    made.ReferencedFrameOfReferenceSequence = [_frame_of_reference(uid, sources)]
    made.StructureSetROISequence = [_roi(one, uid, provenance) for one in found]
    made.RTROIObservationsSequence = [_observation(one, provenance) for one in found]
    whole = finish(made, sources, provenance, "rtstruct")
    # Only now: on its way `finish` would look at every coordinate.
    whole.ROIContourSequence = [*_contours(findings, found, sources)]
    return whole


def _structure_set(provenance: Provenance) -> Dataset:
    """Make the object with its series, equipment, structure set and approval (PS3.3 C.8.8.1, C.8.8.5, C.8.8.16)."""
    algorithm = provenance.algorithm
    made = begin("rtstruct", SOP_CLASS_UID, "RTSTRUCT", provenance)
    made.OperatorsName = None
    made.StructureSetLabel = "AI unverified"
    made.StructureSetName = f"{algorithm.name[:30]} {algorithm.version[:16]}, unverified".replace("\\", "/")
    made.StructureSetDescription = "Made by an algorithm, and not verified by a person."
    made.StructureSetDate = made.StructureSetTime = None  # `finish` knows them
    predecessor = provenance.predecessor("rtstruct")
    if predecessor is not None:
        made.PredecessorStructureSetSequence = [_previous(predecessor)]
    made.ApprovalStatus = "UNAPPROVED"
    return made


def _previous(predecessor: Predecessor) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = predecessor.sop_class_uid, predecessor.sop_instance_uid
    return item


def _frame_of_reference(uid: str, sources: Sources) -> Dataset:
    """Name the images that the contours lie on, by study and series (PS3.3 C.8.8.5)."""
    series = Dataset()
    series.SeriesInstanceUID = str(sources.header.SeriesInstanceUID)
    series.ContourImageSequence = references(sources.frames)
    study = Dataset()
    study.ReferencedSOPClassUID = _DETACHED_STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = str(sources.header.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = uid
    item.RTReferencedStudySequence = [study]
    return item


def _roi(one: NumberedSegment, frame_of_reference_uid: str, provenance: Provenance) -> Dataset:
    """Name a segment, and say what drew it; its tracking UID is that of the conceptual volume (PS3.3 C.8.8.5)."""
    identifier, uid = tracking(provenance, one.layer, one.segment)
    item = Dataset()
    item.ROINumber = one.number
    item.ReferencedFrameOfReferenceUID = frame_of_reference_uid
    item.ROIName = one.segment.label[:64].replace("\\", "/")
    item.ROIDescription = identifier
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = "Made by an algorithm, unverified"
    item.ROIDerivationAlgorithmIdentificationSequence = identification(provenance.algorithm)
    volume = Dataset()
    volume.ConceptualVolumeUID = uid
    item.ConceptualVolumeIdentificationSequence = [volume]
    return item


def _observation(one: NumberedSegment, provenance: Provenance) -> Dataset:
    """Say in codes what a segment is (PS3.3 C.8.8.8)."""
    segment = one.segment
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = one.number
    item.ROIObservationDescription = tracking(provenance, one.layer, segment)[0]
    item.RTROIIdentificationCodeSequence = [code_item(segment.type)]
    item.SegmentedPropertyCategoryCodeSequence = [code_item(segment.category)]
    item.AnatomicRegionSequence = [code_item(segment.finding_site)]
    # What a structure is planned as, such as a target volume, is for a person to say.
    item.RTROIInterpretedType = "ORGAN" if segment.category.value in _ANATOMY else None
    item.ROIInterpreter = None
    return item


def _contours(findings: Findings, found: Sequence[NumberedSegment], sources: Sources) -> Iterator[Dataset]:
    """Draw each segment (PS3.3 C.8.8.6): its colour, and its polygons slice by slice, numbered from 1."""
    place = geometry(sources)
    rois: dict[int, Dataset] = {}
    for one in found:
        item = rois[one.number] = Dataset()
        item.ROIDisplayColor = list(one.segment.color)
        item.ContourSequence = []
        item.ReferencedROINumber = one.number
    for one, z, mask in masks(findings, found, areas(findings)):
        contours = rois[one.number].ContourSequence
        for polygon in polygons(mask, _MOST_CORNERS):
            contour = Dataset()
            contour.ContourImageSequence = [reference(sources.frames[z])]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(polygon)
            contour.ContourNumber = len(contours) + 1
            contour[_CONTOUR_DATA] = _data(_place(polygon, place, z))
            # Says that the bytes are in the data set's own encoding: they are then written as they are.
            contour.set_original_encoding(False, True, contour._character_set)
            contours.append(contour)
    yield from rois.values()


def _place(polygon: Polygon, place: Geometry, z: int) -> Polygon:
    """Put a polygon of a slice into the patient: shape (n, 3), LPS in mm (PS3.3 C.7.6.2.1.1)."""
    between_rows, between_columns = place.pixel_spacing
    along_row, along_column = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    steps = np.stack([along_row * between_columns, along_column * between_rows])
    return np.asarray(np.asarray(place.positions[z]) + polygon @ steps)


def _data(points: Polygon) -> RawDataElement:
    """Write points as decimal strings to a thousandth of a mm; as bytes, because there may be a million of them."""
    text = "\\".join(f"{value:.3f}" for value in points.ravel())
    encoded = (text + " " * (len(text) % 2)).encode("ascii")
    return RawDataElement(_CONTOUR_DATA, "DS", len(encoded), encoded, 0, False, True)
