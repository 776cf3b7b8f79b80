"""Small, valid DICOM images made for tests: every slice in its place, every Type 1 and 2 attribute there.

`series` makes single-frame CT or MR images, `enhanced` one enhanced multi-frame image, `plain` one image without a
position (CR, US, secondary capture). They have file meta information and can be saved as they are. `instances` makes
`study.Instance`s of them, by way of their bytes; `write` puts them into a folder.

Keyword arguments that start with a capital are attributes by keyword (`PatientName="Doe^Jane"`); a function is called
with the slice's index; None leaves the attribute out.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from dicomai.study import Instance, Series, group

# What the modality's single-frame module has and its enhanced one has not, or has in a functional group.
_SINGLE_FRAME_ONLY = {
    "RescaleSlope", "RescaleIntercept", "RescaleType", "EchoTime", "KVP", "ScanOptions", "AcquisitionDate",
    "AcquisitionTime", "ScanningSequence", "SequenceVariant", "RepetitionTime", "EchoTrainLength", "EchoNumbers",
}  # fmt: skip

Vector = NDArray[np.float64]

_SQUARE = np.sqrt(0.5)
ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (_SQUARE, _SQUARE, 0, -0.5 * _SQUARE, 0.5 * _SQUARE, -np.sqrt(0.75)),
}
SOP_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "US": UltrasoundImageStorage,
    "OT": SecondaryCaptureImageStorage,
}


def cosines(orientation: str | Sequence[float]) -> tuple[Vector, Vector, Vector]:
    """Unit vectors in LPS: along a row (x), along a column (y), and their cross product, the normal (z)."""
    six = ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation
    row, column = np.asarray(six[:3], dtype=np.float64), np.asarray(six[3:], dtype=np.float64)
    return row, column, np.cross(row, column)


def pattern(shape: Sequence[int]) -> NDArray[np.uint16]:
    """Stored values of 12 bits in which no two neighbours and no two ends are alike, so that a flip shows."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.asarray((z * 293 + y * 37 + x * 11) % 4096, dtype=np.uint16)


def series(
    *,
    modality: str = "CT",
    shape: tuple[int, int, int] = (5, 8, 10),
    spacing: tuple[float, float, float] = (2.0, 0.8, 0.6),
    orientation: str | Sequence[float] = "axial",
    origin: Sequence[float] = (-40.0, -30.0, 20.0),
    positions: Sequence[float] | None = None,
    tilt: float = 0.0,
    array: ArrayLike | None = None,
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    reverse: bool = False,
    **attributes: Any,
) -> list[FileDataset]:
    """Make a series of single-frame images.

    Args:
        modality: CT or MR.
        shape: (z, y, x); of no account where `array` is given, nor its z where `positions` are.
        spacing: (z, y, x) in mm.
        orientation: a key of `ORIENTATIONS` or six direction cosines.
        origin: LPS position in mm of the centre of the first voxel of slice 0.
        positions: where each slice lies along the normal from `origin`, in mm; evenly spaced unless given.
        tilt: angle in degrees between the direction from slice to slice and the normal (a sheared stack).
        array: stored values (z, y, x), uint8, uint16 or int16; `pattern(shape)` unless given.
        study_uid: StudyInstanceUID; a new one unless given.
        series_uid: SeriesInstanceUID; a new one unless given.
        frame_of_reference_uid: FrameOfReferenceUID; a new one unless given.
        reverse: number and list the slices from the far end; slice z of `array` stays where it is.
        attributes: attributes by keyword, over what is there by default.
    """
    pixels = _pixels(array, shape, positions)
    row, column, normal = cosines(orientation)
    offsets = np.arange(len(pixels)) * spacing[0] if positions is None else np.asarray(positions, dtype=float)
    direction = normal + np.tan(np.radians(tilt)) * column
    uids = (
        study_uid or generate_uid(),
        series_uid or generate_uid(),
        frame_of_reference_uid or generate_uid(),
    )
    made = []
    for z, plane in enumerate(pixels):
        ds = _image(modality, SOP_CLASSES[modality], plane, uids)
        ds.ImageOrientationPatient = _decimal([*row, *column])
        ds.ImagePositionPatient = _decimal(np.asarray(origin, dtype=float) + offsets[z] * direction)
        ds.PixelSpacing = _decimal(spacing[1:])
        ds.SliceThickness = _decimal([spacing[0]])[0]
        ds.InstanceNumber = len(pixels) - z if reverse else z + 1
        made.append(_override(ds, attributes, z))
    return made[::-1] if reverse else made


def enhanced(
    *,
    modality: str = "MR",
    shape: tuple[int, int, int] = (5, 8, 10),
    spacing: tuple[float, float, float] = (2.0, 0.8, 0.6),
    orientation: str | Sequence[float] = "axial",
    origin: Sequence[float] = (-40.0, -30.0, 20.0),
    positions: Sequence[float] | None = None,
    array: ArrayLike | None = None,
    echo_times: Sequence[float] | None = None,
    b_values: Sequence[float] | None = None,
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    **attributes: Any,
) -> FileDataset:
    """Make one enhanced multi-frame image, MR or CT (PS3.3 A.36, A.38); frame f is slice f of `array`.

    It has what places, describes and scales its frames; the macros that tell how they were acquired are left out.

    Args:
        modality: MR or CT.
        shape: as in `series`.
        spacing: as in `series`.
        orientation: as in `series`.
        origin: as in `series`.
        positions: as in `series`, one for each frame.
        array: as in `series`.
        echo_times: EffectiveEchoTime of each frame, in ms (MR); 20 unless given.
        b_values: DiffusionBValue of each frame (MR); no diffusion sequence unless given.
        study_uid: as in `series`.
        series_uid: as in `series`.
        frame_of_reference_uid: as in `series`.
        attributes: attributes of the data set's top level.
    """
    pixels = _pixels(array, shape, positions)
    row, column, normal = cosines(orientation)
    offsets = np.arange(len(pixels)) * spacing[0] if positions is None else np.asarray(positions, dtype=float)
    uids = (
        study_uid or generate_uid(),
        series_uid or generate_uid(),
        frame_of_reference_uid or generate_uid(),
    )
    ds = _image(modality, {"MR": EnhancedMRImageStorage, "CT": EnhancedCTImageStorage}[modality], pixels, uids)
    _enhance(ds, modality)
    for keyword in _SINGLE_FRAME_ONLY & set(ds.dir()):
        delattr(ds, keyword)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=_decimal([*row, *column]))]
    measures = _item(PixelSpacing=_decimal(spacing[1:]), SliceThickness=_decimal([spacing[0]])[0])
    shared.PixelMeasuresSequence = [measures]
    _share(shared, modality)
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for f, offset in enumerate(offsets):
        place = np.asarray(origin, dtype=float) + offset * normal
        frame = _item(PlanePositionSequence=[_item(ImagePositionPatient=_decimal(place))])
        frame.FrameContentSequence = [_frame_content(f)]
        if modality == "MR":
            frame.MREchoSequence = [_item(EffectiveEchoTime=20.0 if echo_times is None else echo_times[f])]
        if b_values is not None:
            directionality = "NONE" if b_values[f] == 0 else "ISOTROPIC"
            diffusion = _item(DiffusionBValue=float(b_values[f]), DiffusionDirectionality=directionality)
            frame.MRDiffusionSequence = [diffusion]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    return _override(ds, attributes, 0)


def plain(
    *,
    modality: str = "CR",
    shape: tuple[int, int] = (8, 10),
    array: ArrayLike | None = None,
    **attributes: Any,
) -> FileDataset:
    """Make one image without position or orientation: CR, US, or OT for a secondary capture.

    Args:
        modality: CR, US or OT.
        shape: (y, x); of no account where `array` is given.
        array: stored values (y, x).
        attributes: attributes by keyword.
    """
    if array is None:  # ultrasound has 8 bits (PS3.3 C.8.5.6.1.11)
        array = (pattern((1, *shape))[0] // (16 if modality == "US" else 1)).astype("u1" if modality == "US" else "u2")
    plane = np.asarray(array)
    ds = _image(modality, SOP_CLASSES[modality], plane, (generate_uid(), generate_uid(), ""))
    ds.InstanceNumber = 1
    return _override(ds, attributes, 0)


def encode(ds: FileDataset) -> bytes:
    """Give the bytes of a data set's file (PS3.10)."""
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def instances(datasets: Iterable[FileDataset]) -> tuple[Instance, ...]:
    """Make instances of data sets, in their order, each read from its own bytes in memory."""
    made = []
    for ds in datasets:
        content = encode(ds)
        made.append(Instance.read(lambda content=content: io.BytesIO(content), "the synthetic image"))  # type: ignore[misc]
    return tuple(made)


def as_series(datasets: Iterable[FileDataset]) -> Series:
    """Make one `study.Series` of data sets that share a series."""
    ((only,),) = (study.series for study in group(instances(datasets)))
    return only


def write(datasets: Iterable[FileDataset], folder: Path) -> list[Path]:
    """Save data sets as `0000.dcm`, `0001.dcm` ... in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets):
        paths.append(folder / f"{number:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def _pixels(array: ArrayLike | None, shape: Sequence[int], positions: Sequence[float] | None) -> NDArray[Any]:
    if array is None:
        array = pattern(shape if positions is None else (len(positions), *shape[1:]))
    return np.asarray(array)


def _decimal(values: Iterable[float]) -> list[DSfloat]:
    """Numbers as DS of at most 16 characters (PS3.5 6.2)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _item(**attributes: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def _override(ds: FileDataset, attributes: dict[str, Any], index: int) -> FileDataset:
    for keyword, given in attributes.items():
        value = given(index) if callable(given) else given
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    return ds


def _image(modality: str, sop_class: str, pixels: NDArray[Any], uids: tuple[str, str, str]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uids[:2]
    _describe(ds, modality)
    if uids[2]:
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uids[2], ""
    bits = 8 if pixels.dtype.itemsize == 1 else 16
    signed = int(np.issubdtype(pixels.dtype, np.signedinteger))
    stored = bits if signed or pixels.max(initial=0) > 4095 or bits == 8 else 12
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", signed
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, stored, stored - 1
    content = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    ds["PixelData"].VR = "OW"
    return ds


def _describe(ds: Dataset, modality: str) -> None:
    """Fill in patient, study, series and equipment, and what the modality's image module asks for."""
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Synthetic^Sample", "SYN-1", "HOSPITAL"
    ds.PatientBirthDate, ds.PatientSex = "19700101", "O"
    ds.StudyDate, ds.StudyTime = "20240102", "030405"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "ACC1", "Referrer^Rita", "1"
    ds.StudyDescription, ds.SeriesDescription = "Synthetic study", f"Synthetic {modality}"
    ds.Modality, ds.SeriesNumber, ds.SeriesDate, ds.SeriesTime = modality, 3, "20240102", "030500"
    ds.Manufacturer, ds.ManufacturerModelName = "Synthesiser", "S1"
    ds.InstitutionName, ds.StationName, ds.DeviceSerialNumber = "Test Hospital", "ROOM1", "0001"
    ds.SoftwareVersions = "1.0"
    ds.AcquisitionDate, ds.AcquisitionTime = "20240102", "030501"
    ds.ContentDate, ds.ContentTime = "20240102", "030501"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    if modality == "CT":
        ds.KVP, ds.AcquisitionNumber = "120", 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
        ds.BodyPartExamined, ds.PatientPosition = "HEAD", "HFS"
    elif modality == "MR":
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength, ds.EchoNumbers = "2000", "20", 1, 1
        ds.BodyPartExamined, ds.PatientPosition, ds.AcquisitionNumber = "HEAD", "HFS", 1
    elif modality == "CR":
        ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "PA", ["L", "F"]
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
    elif modality == "OT":
        ds.ConversionType, ds.ImageType, ds.PatientOrientation = "WSD", ["DERIVED", "SECONDARY"], ""
        ds.Laterality = ""
    else:
        ds.ImageType, ds.PatientOrientation, ds.Laterality = ["ORIGINAL", "PRIMARY"], "", ""


def _enhance(ds: Dataset, modality: str) -> None:
    """Fill in what the enhanced MR and CT image modules ask for at the top level (PS3.3 C.8.13, C.8.15)."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.InstanceNumber, ds.ContentQualification, ds.LossyImageCompression = 1, "RESEARCH", "00"
    ds.BurnedInAnnotation, ds.PresentationLUTShape, ds.AcquisitionDateTime = (
        "NO",
        "IDENTITY",
        "20240102030501",
    )
    ds.AcquisitionDuration, ds.PixelPresentation, ds.VolumetricProperties = 10.0, "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique, ds.AcquisitionContextSequence = "NONE", []
    organization = _item(DimensionOrganizationUID=generate_uid())
    ds.DimensionOrganizationSequence = [organization]
    index = _item(DimensionOrganizationUID=organization.DimensionOrganizationUID)
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00200032, 0x00209113
    ds.DimensionIndexSequence = [index]
    if modality == "MR":
        ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "T1"
        ds.ResonantNucleus, ds.KSpaceFiltering, ds.MagneticFieldStrength = "1H", "NONE", 1.5
        ds.ApplicableSafetyStandardAgency = "IEC"
        ds.ApplicableSafetyStandardDescription = "IEC 60601-2-33"


def _share(shared: Dataset, modality: str) -> None:
    """Fill in the functional groups that all frames share."""
    shared.FrameVOILUTSequence = [_item(WindowCenter="2048", WindowWidth="4096")]
    region = _item(CodeValue="12738006", CodingSchemeDesignator="SCT", CodeMeaning="Brain")
    shared.FrameAnatomySequence = [_item(FrameLaterality="U", AnatomicRegionSequence=[region])]
    rescale = _item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
    kind = _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], PixelPresentation="MONOCHROME")
    kind.VolumetricProperties, kind.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    if modality == "MR":
        kind.ComplexImageComponent, kind.AcquisitionContrast = "MAGNITUDE", "T1"
        shared.MRImageFrameTypeSequence = [kind]
    else:
        shared.CTImageFrameTypeSequence = [kind]
        rescale.RescaleIntercept, rescale.RescaleType = "-1024", "HU"
    shared.PixelValueTransformationSequence = [rescale]


def _frame_content(index: int) -> Dataset:
    content = _item(FrameAcquisitionNumber=1, FrameReferenceDateTime="20240102030501")
    content.FrameAcquisitionDateTime, content.FrameAcquisitionDuration = "20240102030501", 10.0
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [index + 1]
    return content
