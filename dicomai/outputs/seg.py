"""Segmentation (PS3.3 A.51): binary, on the source images' own grid, with a reference to each of them.

Viewers place an overlay either by the planes' positions or by the references to source images; both are written, and
both are the source's own.
"""

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

from dicomai.errors import InferenceError
from dicomai.findings import Findings
from dicomai.outputs.common import (
    Geometry,
    NumberedSegment,
    carry,
    decimals,
    equipment,
    finish,
    found_segments,
    geometry,
    tracking,
)
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

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
    """
    _check_shapes(findings, sources)
    found = found_segments(findings)
    if not found:
        return None
    place = geometry(sources)
    made = Segmentation(
        source_images=_stand_ins(sources, provenance, place),
        pixel_array=_pixels(findings, found),
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
    _refer(made, sources)
    _name_dimensions(made, provenance)
    _say_lossy(made, sources)
    # Viewers sort by it. Laterality stays with the sources: in a segmentation validators take it for a fault.
    if sources.header.get("BodyPartExamined"):
        carry(made, sources.header, "BodyPartExamined")
    return finish(made, sources, provenance, "seg")


def _check_shapes(findings: Findings, sources: Sources) -> None:
    header = sources.header
    expected = (len(sources.frames), int(header.Rows), int(header.Columns))
    for layer in findings.layers:
        if layer.labels.shape != expected:
            raise InferenceError(
                f"The label map has the shape {layer.labels.shape} and the images have {expected}: it lies on another"
                " grid."
            )


def _pixels(findings: Findings, found: Sequence[NumberedSegment]) -> NDArray[Any]:
    """Give one label map (z, y, x) of the numbers in the result, or (z, y, x, segment) where layers overlap."""
    maps = []
    for index, layer in enumerate(findings.layers):
        numbers = {one.segment.number: one.number for one in found if one.layer == index}
        if all(value == number for value, number in numbers.items()):
            maps.append(layer.labels)
            continue
        table = np.zeros(max(numbers) + 1, dtype=np.min_scalar_type(len(found)))
        for value, number in numbers.items():
            table[value] = number
        maps.append(table[layer.labels])
    used = [maps[index] for index in sorted({one.layer for one in found})]
    if len(used) == 1:
        return used[0]
    merged = np.zeros(used[0].shape, dtype=np.min_scalar_type(len(found)))
    for numbers_of_layer in used:
        if np.logical_and(merged, numbers_of_layer).any():
            return np.stack([maps[one.layer] == one.number for one in found], axis=-1).astype(np.uint8)
        merged |= numbers_of_layer.astype(merged.dtype)
    return merged


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
    frame_of_reference = sources.header.get("FrameOfReferenceUID") or provenance.uid("seg", "frame of reference")
    made = []
    for index, position in enumerate(place.positions):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, _stand_in_uid(index)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.1", "1.2"
        ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = None
        ds.AccessionNumber = ds.StudyID = ds.StudyDate = ds.StudyTime = None
        ds.Modality, ds.Rows, ds.Columns = "MR", sources.header.Rows, sources.header.Columns
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = str(frame_of_reference), None
        ds.ImageOrientationPatient = decimals(place.orientation)
        ds.ImagePositionPatient = decimals(position)
        ds.PixelSpacing = decimals(place.pixel_spacing)
        (ds.SliceThickness,) = decimals((place.slice_thickness,))
        if place.spacing is not None:  # by positions: what the header says of it is often wrong
            (ds.SpacingBetweenSlices,) = decimals((place.spacing,))
        made.append(ds)
    return made


def _stand_in_uid(index: int) -> str:
    return f"1.3.{index}"


def _refer(made: Dataset, sources: Sources) -> None:
    """Put the real source images and frame numbers in place of those that stood for them (PS3.3 C.7.6.16.2.6)."""
    by_stand_in = {_stand_in_uid(index): frame for index, frame in enumerate(sources.frames)}
    images = {
        id(image): image  # the segments of a slice share one item
        for groups in made.PerFrameFunctionalGroupsSequence
        for derivation in groups.DerivationImageSequence
        for image in derivation.SourceImageSequence
    }
    for image in images.values():
        frame = by_stand_in[image.ReferencedSOPInstanceUID]
        image.ReferencedSOPClassUID = frame.instance.sop_class_uid
        image.ReferencedSOPInstanceUID = frame.instance.sop_instance_uid
        if frame.number is not None:
            image.ReferencedFrameNumber = frame.number
    made.SourceImageSequence = _instances(sources)
    series = Dataset()
    series.SeriesInstanceUID = sources.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = _instances(sources)
    made.ReferencedSeriesSequence = [series]


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


def _say_lossy(made: Dataset, sources: Sources) -> None:
    """Carry a loss in the sources' history on (PS3.3 C.7.6.1.1.5); once lossy, always lossy."""
    if not sources.lossy:
        return
    made.LossyImageCompression = "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if sources.header.get(keyword):
            carry(made, sources.header, keyword)
