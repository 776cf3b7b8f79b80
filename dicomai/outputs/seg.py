"""Segmentation (PS3.3 A.51) on the source images' own grid, with a reference to each of them: binary, or a label map.

Viewers place an overlay either by the planes' positions or by the references to source images; both are written, and
both are the source's own.
"""

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage

from dicomai.findings import Findings, NumberedSegment, found_segments
from dicomai.outputs import labelmap
from dicomai.outputs.common import (
    Geometry,
    carry,
    check_shapes,
    equipment,
    finish,
    geometry,
    identification,
    say_lossy,
    tracking,
)
from dicomai.outputs.frames import overlap, pack, spans
from dicomai.outputs.planes import in_order, name_dimensions, put_frames, stand_in, take_frame
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.profiles import LABEL_MAP

SOP_CLASS_UID = SegmentationStorage
BINARY, LABELMAP = hd.seg.SegmentationTypeValues.BINARY, hd.seg.SegmentationTypeValues.LABELMAP


def sop_class_uid(findings: Findings, provenance: Provenance) -> UID:
    """Say which class the segmentation of a run has; for what refers to it.

    A Label Map Segmentation where every destination takes it, and no voxel lies in two segments; else a binary one.
    """
    if provenance.label_map is None or overlap(findings, found_segments(findings)):
        return UID(SegmentationStorage)
    return UID(LABEL_MAP)


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Encode the label maps as one Segmentation object; None where no segment has a voxel.

    Segments that overlap (of different layers) become segments of the same object. A segment without a voxel is left
    out: some readers load nothing of an object that describes one. In a label map a voxel's value is the number of its
    segment, and the first item of the sequence describes the value 0, the background (PS3.3 C.8.20.2.3).

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
    where = spans(findings, found)
    present = where[..., 1] > where[..., 0]
    slices = in_order(np.flatnonzero(present.any(axis=0)).tolist(), place)
    overlaps = overlap(findings, found)
    syntax = None if overlaps else provenance.label_map
    whole, pattern = outline(
        "seg",
        found,
        sources,
        provenance,
        place,
        "YES" if overlaps else "NO",
        content_label="SEGMENTATION",
        content_description=f"Segmentation by {provenance.algorithm.name}"[:64],
        segmentation_type=LABELMAP if syntax else BINARY,
    )
    planes = range(len(slices))
    if syntax:
        whole.file_meta.TransferSyntaxUID = UID(syntax)
        put_frames(whole, pattern, [(0, plane) for plane in planes], slices, sources, place)
        whole.add(labelmap.pixels(labelmap.numbered(findings, found, slices), whole, syntax))
        return whole
    frames = [(row, plane) for row in range(len(found)) for plane in planes if present[row, slices[plane]]]
    put_frames(whole, pattern, frames, slices, sources, place)
    whole.add(pack(findings, found, frames, slices, where))
    return whole


def outline(
    output: str,
    found: Sequence[NumberedSegment],
    sources: Sources,
    provenance: Provenance,
    place: Geometry,
    overlap: str,
    **form: Any,
) -> tuple[Dataset, Dataset]:
    """Make a segmentation without frames: by highdicom, with a single frame, of a single voxel, which is taken out.

    Args:
        output: which of the result's it is.
        found: its segments.
        sources: the images that it lies on.
        provenance: who made it, and under which identifiers.
        place: where the images lie.
        overlap: Segments Overlap (0062,0013).
        **form: what highdicom has to know beside: the segmentation type, the content's label and description.

    Returns:
        The object, and the functional groups of the frame, for `put_frames`.
    """
    described = [describe(numbered, provenance) for numbered in found]
    # It looks for each segment that it knows of: of many, two stand for all where voxels are no numbers of segments.
    known = described if form["segmentation_type"] is LABELMAP else described[:2]
    made = Segmentation(
        source_images=[stand_in(sources, provenance, place)],
        pixel_array=np.ones((1, 1, 1), np.uint8),
        segment_descriptions=known,
        series_instance_uid=provenance.uid(output, "series"),
        series_number=provenance.series_number(output),
        sop_instance_uid=provenance.uid(output, "instance"),
        instance_number=1,
        content_creator_name="dicomai^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(provenance),
        **form,
    )
    if known is not described:
        made.SegmentSequence = described
    made.Rows, made.Columns = sources.header.Rows, sources.header.Columns
    made.SegmentsOverlap = overlap
    pattern = take_frame(made)
    del made.PixelData
    name_dimensions(made, provenance.uid(output, "dimensions"))
    say_lossy(made, sources)
    # Viewers sort by it. Laterality stays with the sources: in a segmentation validators take it for a fault.
    if sources.header.get("BodyPartExamined"):
        carry(made, sources.header, "BodyPartExamined")
    return finish(made, sources, provenance, output), pattern


def describe(numbered: NumberedSegment, provenance: Provenance) -> SegmentDescription:
    """Describe a segment in codes (PS3.3 C.8.20.2)."""
    segment = numbered.segment
    identifier, uid = tracking(provenance, numbered.layer, segment)
    return SegmentDescription(
        segment_number=numbered.number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.type,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification(provenance.algorithm),
        tracking_uid=uid,
        tracking_id=identifier,
        anatomic_regions=[segment.finding_site],
        display_color=CIELabColor.from_rgb(*segment.color),
    )
