"""What all result objects have in common: file meta information, equipment, description, segment numbers, bytes."""

import copy
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from dicomai import IMPLEMENTATION_CLASS_UID
from dicomai.errors import GeometryError, InferenceError
from dicomai.findings import Findings, Segment
from dicomai.outputs.header import restate, stamp, zone
from dicomai.outputs.provenance import Algorithm, Provenance, Sources
from dicomai.stacks import attributes, number, numbers
from dicomai.study import Frame

MANUFACTURER = "dicomai"
MODEL_NAME = "dicomai"

_LONGEST = 64  # characters of a Long String (PS3.5 6.2, VR LO)


def tracking(provenance: Provenance, layer: int, segment: Segment) -> tuple[str, str]:
    """Give a segment's tracking identifier and UID, which the segmentation and the report share."""
    return (
        f"{provenance.algorithm.name}: {segment.label}",
        provenance.uid("tracking", f"{layer}.{segment.number}"),
    )


def series_description(sources: Sources, provenance: Provenance, output: str) -> str:
    """Describe a result's series in at most 64 characters; 'unverified' is always among them."""
    name = provenance.algorithm.name
    series_number = sources.header.get("SeriesNumber")
    of = f" of S{series_number}" if series_number is not None else ""
    predecessor = provenance.predecessor(output)
    end = f" {provenance.algorithm.version}{of}, unverified"
    hint = f", supersedes S{predecessor.series_number}" if predecessor else ""
    if len(f"AI {name}{end}{hint}") > _LONGEST:
        hint = ""
    if len(f"AI {name}{end}") > _LONGEST:
        end = f" {provenance.algorithm.version[:16]}{of}, unverified"
    room = _LONGEST - len(f"AI {end}{hint}")
    return f"AI {name[:room]}{end}{hint}".replace("\\", "/")


def finish(ds: Dataset, sources: Sources, provenance: Provenance, output: str) -> Dataset:
    """Give an object that highdicom built what all results have, and the patient's and the study's attributes.

    Series and equipment (PS3.3 C.7.3.1, C.7.5.1), Contributing Equipment (C.12.1), dates and times in the hospital's
    zone, file meta information (PS3.10 7.1).
    """
    made = Dataset()
    for element in ds:
        made[element.tag] = element
    made.SeriesDescription = series_description(sources, provenance, output)
    made.ContributingEquipmentSequence = [_contributing_equipment(provenance)]
    made.StudyInstanceUID = str(sources.header.StudyInstanceUID)
    return seal(made, sources.newest, provenance.created, provenance.hospital_time(), provenance.software_version)


def seal(made: Dataset, newest: Dataset, created: datetime, local: datetime, software_version: str) -> Dataset:
    """Give an object its dates and times, its file meta information, and the patient's and the study's attributes.

    Args:
        made: the object; it lies in a study already.
        newest: the newest instance that it is about.
        created: when it was made; aware of its time zone.
        local: the same in the hospital's zone, for where `newest` names none.
        software_version: dicomai's own.
    """
    offset = zone(newest)
    stamp(made, created.astimezone(offset) if offset else local)
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = UID(made.SOPClassUID)
    made.file_meta.MediaStorageSOPInstanceUID = UID(made.SOPInstanceUID)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    made.file_meta.ImplementationVersionName = f"DICOMAI_{software_version}"[:16]
    return restate(correct_ambiguous_vr(made, True), newest)


def equipment(provenance: Provenance) -> dict[str, Any]:
    """Give highdicom's arguments for the equipment that made an object (PS3.3 C.7.5.1)."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": provenance.software_version,
        "device_serial_number": provenance.installation,
    }


def observer(device_uid: str, installation: str) -> ObserverContext:
    """Name who says what a document says: this node (PS3.16 TID 1002, 1004)."""
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid,
            name="dicomai",
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=installation,
        ),
    )


def begin(output: str, sop_class_uid: str, modality: str, provenance: Provenance) -> Dataset:
    """Begin an object that highdicom does not build: its identifiers, series and equipment (PS3.3 C.7.3.1, C.7.5.1)."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class_uid, provenance.uid(output, "instance")
    made.Modality, made.SeriesInstanceUID = modality, provenance.uid(output, "series")
    made.SeriesNumber, made.InstanceNumber = provenance.series_number(output), 1
    for keyword, value in equipment(provenance).items():
        setattr(made, "".join(word.title() for word in keyword.split("_")), value)
    return made


def reference(frame: Frame, numbers: Sequence[int] = ()) -> Dataset:
    """Name an image (PS3.3 10.3).

    Args:
        frame: of the image.
        numbers: which of its frames are meant; the frame's own number, if it has one, where none are given.
    """
    item = Dataset()
    item.ReferencedSOPClassUID = frame.instance.sop_class_uid
    item.ReferencedSOPInstanceUID = frame.instance.sop_instance_uid
    if numbers or frame.number is not None:
        item.ReferencedFrameNumber = list(numbers) or frame.number
    return item


def references(frames: Iterable[Frame]) -> list[Dataset]:
    """Name the images of some frames, each once, in order of first appearance, with the numbers of its frames."""
    by_image: dict[str, list[Frame]] = {}
    for frame in frames:
        by_image.setdefault(frame.instance.sop_instance_uid, []).append(frame)
    return [
        reference(group[0], [frame.number for frame in group if frame.number is not None])
        for group in by_image.values()
    ]


def stand_in(
    study_instance_uid: str,
    series_instance_uid: str,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    is_image: bool = False,
) -> Dataset:
    """Stand for an object that a document refers to: identifiers only, and by what highdicom tells an image.

    `finish` puts the patient and the study in.
    """
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, sop_instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_instance_uid, series_instance_uid
    if is_image:
        ds.Rows = ds.Columns = 1
    ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = None
    ds.AccessionNumber = ds.StudyID = ds.StudyDate = ds.StudyTime = None
    return ds


def encode(ds: Dataset) -> bytes:
    """Give the bytes of a result's DICOM file (PS3.10), Explicit VR Little Endian; the same for the same object."""
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _contributing_equipment(provenance: Provenance) -> Dataset:
    """Describe the algorithm as equipment; its Device UID changes when the model does.

    The scanner is left out on purpose, with its institution and station: the source images have them.
    """
    algorithm = provenance.algorithm
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.ProcessingEquipment)]
    item.Manufacturer = algorithm.manufacturer or MANUFACTURER
    item.ManufacturerModelName = algorithm.name
    item.DeviceSerialNumber = algorithm.weights_digest[:64]
    item.SoftwareVersions = [algorithm.version, f"dicomai {provenance.software_version}"]
    item.DeviceUID = algorithm.device_uid
    item.ContributionDescription = (algorithm.description or "Analysed the source images")[:1024]
    return item


def code_item(code: Code) -> Dataset:
    """Encode a code (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[:3]
    if code.scheme_version:
        item.CodingSchemeVersion = code.scheme_version
    return item


def identification(algorithm: Algorithm) -> hd.AlgorithmIdentificationSequence:
    """Name what drew a segment (Algorithm Identification Macro, PS3.3 10.16)."""
    return hd.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=algorithm.family,
        version=algorithm.version,
        source=algorithm.manufacturer,
        parameters={"weights": algorithm.weights_digest},
    )


def frame_of_reference(sources: Sources, provenance: Provenance) -> str:
    """Give the Frame of Reference UID of what lies on the images: theirs, or one for all objects of a result."""
    return str(sources.header.get("FrameOfReferenceUID") or provenance.uid("seg", "frame of reference"))


def check_shapes(findings: Findings, sources: Sources) -> None:
    """Refuse label maps of another shape than the images.

    Raises:
        InferenceError: a label map lies on another grid.
    """
    header = sources.header
    expected = (len(sources.frames), int(header.Rows), int(header.Columns))
    for layer in findings.layers:
        if layer.labels.shape != expected:
            raise InferenceError(
                f"The label map has the shape {layer.labels.shape} and the images have {expected}: it lies on another"
                " grid."
            )


def say_lossy(made: Dataset, sources: Sources) -> None:
    """Carry a loss in the sources' history on (PS3.3 C.7.6.1.1.5); once lossy, always lossy."""
    if not sources.lossy:
        return
    made.LossyImageCompression = "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if sources.header.get(keyword):
            carry(made, sources.header, keyword)


def carry(made: Dataset, header: Dataset, keyword: str) -> None:
    """Copy an attribute as it is, without judging its value again."""
    made[keyword] = copy.deepcopy(header[keyword])


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the slices lie, as their images say (PS3.3 C.7.6.2, C.7.6.16.2).

    Attributes:
        orientation: six direction cosines, of the first slice; the others differ by less than the volume allows.
        positions: for each slice the position of its first voxel's centre, LPS, mm.
        pixel_spacing: between rows, between columns, mm.
        slice_thickness: as stated, in mm; the spacing where nothing is stated.
        spacing: mean distance of neighbouring slices along the normal, mm; None for a single slice.
    """

    orientation: tuple[float, ...]
    positions: tuple[tuple[float, ...], ...]
    pixel_spacing: tuple[float, ...]
    slice_thickness: float
    spacing: float | None


def geometry(sources: Sources) -> Geometry:
    """Read where the slices lie.

    Raises:
        GeometryError: a slice does not say where it lies.
    """
    first = sources.frames[0]
    orientation = _numbers(first, "PlaneOrientationSequence", "ImageOrientationPatient")
    positions = tuple(_numbers(frame, "PlanePositionSequence", "ImagePositionPatient") for frame in sources.frames)
    normal = np.cross(orientation[:3], orientation[3:])
    along = np.asarray(positions) @ normal
    spacing = float(abs(along[-1] - along[0]) / (len(along) - 1)) if len(along) > 1 else None
    stated = number(attributes(first, "PixelMeasuresSequence"), "SliceThickness")
    thickness = stated if stated is not None and stated > 0 else spacing
    if thickness is None:
        raise GeometryError("The only slice says no SliceThickness: without it there is no volume.")
    return Geometry(
        orientation=orientation,
        positions=positions,
        pixel_spacing=_numbers(first, "PixelMeasuresSequence", "PixelSpacing"),
        slice_thickness=thickness,
        spacing=spacing,
    )


def _numbers(frame: Frame, macro: str, keyword: str) -> tuple[float, ...]:
    found = numbers(attributes(frame, macro), keyword)
    if not found:
        raise GeometryError(
            f"Image {frame.instance.sop_instance_uid} has no {keyword}: its result cannot be placed on it."
        )
    return found


def decimals(values: tuple[float, ...]) -> list[DSfloat]:
    """Write numbers as decimal strings of at most 16 characters (PS3.5 6.2, VR DS)."""
    return [DSfloat(value, auto_format=True) for value in values]
