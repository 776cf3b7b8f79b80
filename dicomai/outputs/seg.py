"""Segmentation (PS3.3 A.51): binary, on the source images' own grid, with a reference to each of them.

Viewers place an overlay either by the planes' positions or by the references to source images; both are written, and
both are the source's own.
"""

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

from dicomai.findings import Findings, NumberedSegment, found_segments
from dicomai.outputs.common import (
    Geometry,
    carry,
    check_shapes,
    decimals,
    equipment,
    finish,
    geometry,
    say_lossy,
    tracking,
)
from dicomai.outputs.frames import PER_FRAME_FUNCTIONAL_GROUPS, describe, overlap, pack, presence
from dicomai.outputs.provenance import Provenance, Sources

SOP_CLASS_UID = SegmentationStorage


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Encode the label maps as one Segmentation object; None where no segment has a voxel.

    Segments that overlap (of different layers) become segments of the same object. A segment without a voxel is left
    out: some readers load nothing of an object that describes one.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on.
        provenance: who made it, and under which identifiers.

    Returns:
        The object; its per-frame functional groups are encoded until they are asked for, its pixels lie in a buffer.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
    """
    check_shapes(findings, sources)
    found = found_segments(findings)
    if not found:
        return None
    place = geometry(sources)
    present = presence(findings, found)
    made = _outline(present, found, sources, provenance, place)
    made.Rows, made.Columns = sources.header.Rows, sources.header.Columns
    made.SegmentsOverlap = "YES" if overlap(findings, found) else "NO"
    planes = _refer(made, sources)
    frames = [(row, plane) for row in range(len(found)) for plane, z in enumerate(planes) if present[row, z]]
    made.NumberOfFrames = len(frames)
    groups = describe(frames, made.PerFrameFunctionalGroupsSequence, several=len(found) > 1)
    del made.PerFrameFunctionalGroupsSequence, made.PixelData
    _name_dimensions(made, provenance)
    say_lossy(made, sources)
    # Viewers sort by it. Laterality stays with the sources: in a segmentation validators take it for a fault.
    if sources.header.get("BodyPartExamined"):
        carry(made, sources.header, "BodyPartExamined")
    whole = finish(made, sources, provenance, "seg")
    # Only now: on its way `finish` would parse the groups that are encoded.
    whole[PER_FRAME_FUNCTIONAL_GROUPS] = groups
    masks = (_mask(findings, found[row], planes[plane]) for row, plane in frames)
    whole.add(pack(masks, made.Rows * made.Columns))
    return whole


def _outline(
    present: NDArray[np.bool_],
    found: Sequence[NumberedSegment],
    sources: Sources,
    provenance: Provenance,
    place: Geometry,
) -> Segmentation:
    """Let highdicom make the object, with all attributes but the frames: one for each plane that shows a segment.

    Those have a single voxel, of the first segment: their functional groups say what every frame of the plane says.
    """
    return Segmentation(
        source_images=_stand_ins(sources, provenance, place),
        pixel_array=present.any(axis=0).astype(np.uint8).reshape(-1, 1, 1),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(numbered, provenance) for numbered in found],
        series_instance_uid=provenance.uid("seg", "series"),
        series_number=provenance.series_number("seg"),
        sop_instance_uid=provenance.uid("seg", "instance"),
        instance_number=1,
        content_label="SEGMENTATION",
        content_description=f"Segmentation by {provenance.algorithm.name}"[:64],
        content_creator_name="dicomai^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(provenance),
    )


def _mask(findings: Findings, one: NumberedSegment, z: int) -> NDArray[np.bool_]:
    """Give the voxels of a segment in a slice, shape (y, x)."""
    return np.asarray(findings.layers[one.layer].labels[z] == one.segment.number)


def _describe(numbered: NumberedSegment, provenance: Provenance) -> SegmentDescription:
    """Describe a segment in codes (PS3.3 C.8.20.2)."""
    segment, algorithm = numbered.segment, provenance.algorithm
    identifier, uid = tracking(provenance, numbered.layer, segment)
    return SegmentDescription(
        segment_number=numbered.number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.type,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=algorithm.family,
            version=algorithm.version,
            source=algorithm.manufacturer,
            parameters={"weights": algorithm.weights_digest},
        ),
        tracking_uid=uid,
        tracking_id=identifier,
        anatomic_regions=[segment.finding_site],
        display_color=CIELabColor.from_rgb(*segment.color),
    )


def _stand_ins(sources: Sources, provenance: Provenance, place: Geometry) -> list[Dataset]:
    """Make a small image per slice for highdicom to build on: geometry only, and names that stand for the slices.

    So a source of any class, with any number of frames and with attributes that break the standard, can be built on.
    `_refer` puts the real references in; `finish` the patient and the study.
    """
    shared = Dataset()
    shared.SOPClassUID, shared.StudyInstanceUID, shared.SeriesInstanceUID = MRImageStorage, "1.1", "1.2"
    shared.PatientID = shared.PatientName = shared.PatientBirthDate = shared.PatientSex = None
    shared.AccessionNumber = shared.StudyID = shared.StudyDate = shared.StudyTime = None
    shared.Modality, shared.Rows, shared.Columns = "MR", 1, 1
    frame_of_reference = sources.header.get("FrameOfReferenceUID") or provenance.uid("seg", "frame of reference")
    shared.FrameOfReferenceUID, shared.PositionReferenceIndicator = str(frame_of_reference), None
    shared.ImageOrientationPatient = decimals(place.orientation)
    shared.PixelSpacing = decimals(place.pixel_spacing)
    (shared.SliceThickness,) = decimals((place.slice_thickness,))
    if place.spacing is not None:  # by positions: what the header says of it is often wrong
        (shared.SpacingBetweenSlices,) = decimals((place.spacing,))
    made = []
    for index, position in enumerate(place.positions):
        ds = Dataset()
        ds.update(shared)
        ds.SOPInstanceUID, ds.ImagePositionPatient = _stand_in_uid(index), decimals(position)
        made.append(ds)
    return made


def _stand_in_uid(index: int) -> str:
    return f"1.3.{index}"


def _refer(made: Dataset, sources: Sources) -> list[int]:
    """Put the real source images and frame numbers in place of those that stood for them (PS3.3 C.7.6.16.2.6).

    Returns:
        For each plane of `made` the index of its slice.
    """
    by_stand_in = {_stand_in_uid(z): z for z in range(len(sources.frames))}
    planes = []
    for groups in made.PerFrameFunctionalGroupsSequence:
        image = groups.DerivationImageSequence[0].SourceImageSequence[0]
        planes.append(by_stand_in[image.ReferencedSOPInstanceUID])
        frame = sources.frames[planes[-1]]
        image.ReferencedSOPClassUID = frame.instance.sop_class_uid
        image.ReferencedSOPInstanceUID = frame.instance.sop_instance_uid
        if frame.number is not None:
            image.ReferencedFrameNumber = frame.number
    instances = _instances(sources)
    made.SourceImageSequence = instances
    series = Dataset()
    series.SeriesInstanceUID = sources.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = instances
    made.ReferencedSeriesSequence = [series]
    return planes


def _instances(sources: Sources) -> list[Dataset]:
    items = []
    for instance in sources.instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
        items.append(item)
    return items


def _name_dimensions(made: Dataset, provenance: Provenance) -> None:
    """Derive the Dimension Organization UID, which highdicom draws by chance, so that the bytes repeat."""
    uid = provenance.uid("seg", "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
