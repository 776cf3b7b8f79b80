"""Frames of an object with functional groups: highdicom makes one on a stand-in, and each real one is made after it."""

import struct
from collections.abc import Iterator, Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import format_number_as_ds

from dicomai.outputs import explicit
from dicomai.outputs.common import Geometry, decimals, frame_of_reference
from dicomai.outputs.provenance import Provenance, Sources

Frames = Sequence[tuple[int, int]]
"""The frames of an object in their order: index of the segment, 0 where frames have none; index of the plane."""

_SOURCES = ("SourceImageSequence", "ReferencedSeriesSequence", "PerFrameFunctionalGroupsSequence")


def stand_in(sources: Sources, provenance: Provenance, place: Geometry) -> Dataset:
    """Make a small image for highdicom to build on: the first slice's geometry only, and a name that stands for it.

    So a source of any class, with any number of frames and with attributes that break the standard, can be built on,
    and highdicom looks at one image in place of thousands. `put_frames` puts the real references in; `finish` the
    patient and the study.
    """
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, "1.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.1", "1.2"
    made.PatientID = made.PatientName = made.PatientBirthDate = made.PatientSex = None
    made.AccessionNumber = made.StudyID = made.StudyDate = made.StudyTime = None
    made.Modality, made.Rows, made.Columns = "MR", 1, 1
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = frame_of_reference(sources, provenance), None
    made.ImageOrientationPatient = decimals(place.orientation)
    made.ImagePositionPatient = decimals(place.positions[0])
    made.PixelSpacing = decimals(place.pixel_spacing)
    (made.SliceThickness,) = decimals((place.slice_thickness,))
    if place.spacing is not None:  # by positions: what the header says of it is often wrong
        (made.SpacingBetweenSlices,) = decimals((place.spacing,))
    return made


def in_order(slices: Sequence[int], place: Geometry) -> list[int]:
    """Sort slices as highdicom sorts frames: along the vector product of a column's direction and a row's."""
    right, down = place.orientation[:3], place.orientation[3:]
    along = np.asarray(place.positions)[slices] @ np.cross(down, right)
    return [slices[index] for index in np.argsort(along)]


def take_frame(made: Dataset) -> Dataset:
    """Take out of an object what names the stand-in, and give the functional groups of its one frame.

    They are the pattern for `put_frames`.
    """
    pattern: Dataset
    (pattern,) = made.PerFrameFunctionalGroupsSequence
    for keyword in _SOURCES:
        if keyword in made:
            del made[keyword]
    return pattern


def put_frames(
    made: Dataset, pattern: Dataset, frames: Frames, slices: Sequence[int], sources: Sources, place: Geometry
) -> None:
    """Give an object its frames, and references to all source images (PS3.3 C.7.6.16, C.12.4).

    Args:
        made: the object, when `finish` is done with it: that would parse what is encoded here.
        pattern: what `take_frame` gave.
        frames: which frames there are.
        slices: for each plane the index of its slice.
        sources: the images.
        place: where they lie.
    """
    made.NumberOfFrames = len(frames)
    if "SegmentIdentificationSequence" not in pattern and _regular(slices, place):
        made.DimensionOrganizationType = "3D"
    explicit.put(made, "PerFrameFunctionalGroupsSequence", _groups(pattern, frames, slices, sources, place))
    instances = [explicit.image(instance) for instance in sources.instances]
    explicit.put(made, "SourceImageSequence", instances)
    series = explicit.sequence("ReferencedInstanceSequence", instances)
    uid = explicit.text("SeriesInstanceUID", "UI", str(sources.header.SeriesInstanceUID))
    explicit.put(made, "ReferencedSeriesSequence", [series + uid])


def name_dimensions(made: Dataset, uid: str) -> None:
    """Give the Dimension Organization UID, which highdicom draws by chance, so that the bytes repeat."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _regular(slices: Sequence[int], place: Geometry) -> bool:
    """Tell whether planes make a volume: whether the Dimension Organization Type is 3D (PS3.3 C.7.6.17)."""
    if len(slices) < 2:
        return False
    spacing, _ = hd.spatial.get_volume_positions(
        image_positions=[place.positions[z] for z in sorted(slices)], image_orientation=place.orientation, sort=False
    )
    return spacing is not None and spacing > 0


def _groups(
    pattern: Dataset, frames: Frames, slices: Sequence[int], sources: Sources, place: Geometry
) -> Iterator[bytes]:
    """Encode the functional groups of each frame, in the order of their tags."""
    (derivation,) = pattern.DerivationImageSequence
    (image,) = derivation.SourceImageSequence
    how = explicit.encode(_without(derivation, "SourceImageSequence"))
    why = explicit.encode(_without(image, "ReferencedSOPClassUID", "ReferencedSOPInstanceUID"))
    before, after = [], []
    for z in slices:
        frame = sources.frames[z]
        number = b"" if frame.number is None else explicit.text("ReferencedFrameNumber", "IS", str(frame.number))
        source = explicit.sequence("SourceImageSequence", [explicit.image(frame.instance) + number + why])
        before.append(explicit.sequence("DerivationImageSequence", [source + how]))
        position = "\\".join(map(format_number_as_ds, place.positions[z]))
        after.append(
            explicit.sequence("PlanePositionSequence", [explicit.text("ImagePositionPatient", "DS", position)])
        )
    rest = [_rest(pattern, row + 1) for row in range(max(row for row, _ in frames) + 1)]
    content, dimensions = _content(pattern)
    for row, plane in frames:
        index = struct.pack(f"<{dimensions}I", *(row + 1, plane + 1)[-dimensions:])
        yield b"".join((before[plane], content, index, after[plane], rest[row]))


def _content(pattern: Dataset) -> tuple[bytes, int]:
    """Encode the Frame Content Macro (PS3.3 C.7.6.16.2.2) without its end, a frame's place in each dimension."""
    part = Dataset()
    part.FrameContentSequence = pattern.FrameContentSequence
    dimensions = part["FrameContentSequence"][0]["DimensionIndexValues"].VM
    return explicit.encode(part)[: -struct.calcsize(f"<{dimensions}I")], dimensions


def _rest(pattern: Dataset, number: int) -> bytes:
    """Encode the other functional groups of a frame, which name its segment if it has one (PS3.3 C.8.20.3.1)."""
    rest = _without(pattern, "DerivationImageSequence", "FrameContentSequence", "PlanePositionSequence")
    if "SegmentIdentificationSequence" in rest:
        rest.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
    return explicit.encode(rest)


def _without(ds: Dataset, *keywords: str) -> Dataset:
    made = Dataset()
    for element in ds:
        if element.keyword not in keywords:
            made[element.tag] = element
    return made
