"""Planes of an object with functional groups: built by highdicom on stand-ins, then referred to the real images."""

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from dicomai.outputs.common import Geometry, decimals
from dicomai.outputs.provenance import Provenance, Sources


def stand_ins(sources: Sources, provenance: Provenance, place: Geometry) -> list[Dataset]:
    """Make a small image per slice for highdicom to build on: geometry only, and names that stand for the slices.

    So a source of any class, with any number of frames and with attributes that break the standard, can be built on.
    `refer` puts the real references in; `finish` the patient and the study.
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


def refer(made: Dataset, sources: Sources) -> list[int]:
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


def name_dimensions(made: Dataset, uid: str) -> None:
    """Give the Dimension Organization UID, which highdicom draws by chance, so that the bytes repeat."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
