"""Study, Series, Stack, Frame, Instance: what images are, before anyone reads their pixels."""

import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset

from dicomai.errors import UnreadableError

IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
"""The attributes (keywords) that say whose images these are."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose images these are (PS3.3 C.2.2): two instances of a study must agree in all four.

    The values never appear in a representation, so that they cannot reach a log by accident.
    """

    patient_id: str = field(repr=False)
    issuer_of_patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    patient_birth_date: str = field(repr=False)

    @classmethod
    def of(cls, ds: Dataset) -> "Identity":
        """Read the four attributes of a data set; an absent one is an empty string."""
        name = "=".join(part.rstrip("^ ") for part in str(ds.get("PatientName") or "").split("="))
        return cls(
            patient_id=str(ds.get("PatientID") or "").strip(),
            issuer_of_patient_id=str(ds.get("IssuerOfPatientID") or "").strip(),
            patient_name=name.rstrip("="),
            patient_birth_date=str(ds.get("PatientBirthDate") or "").strip(),
        )

    def differences(self, other: "Identity") -> tuple[str, ...]:
        """Name the attributes (keywords, never values) in which two identities differ."""
        pairs = (
            ("PatientID", self.patient_id, other.patient_id),
            ("IssuerOfPatientID", self.issuer_of_patient_id, other.issuer_of_patient_id),
            ("PatientName", self.patient_name, other.patient_name),
            ("PatientBirthDate", self.patient_birth_date, other.patient_birth_date),
        )
        return tuple(keyword for keyword, one, two in pairs if one != two)

    @classmethod
    def shown(cls, ds: Dataset) -> "Identity":
        """Read the four attributes of what an archive shows, or what is compared with that.

        A value that cannot be read is an empty string. A name beyond ASCII whose character set nobody names counts as
        UTF-8 where it can be that, else as Latin-1.
        """
        return cls(
            patient_id=_readable(ds, "PatientID"),
            issuer_of_patient_id=_readable(ds, "IssuerOfPatientID"),
            patient_name=_name(ds),
            patient_birth_date=_readable(ds, "PatientBirthDate"),
        )

    def contradictions(self, shown: "Identity") -> tuple[str, ...]:
        """Name the attributes (keywords) by which what an archive shows is somebody else's; what it leaves out is not.

        A Patient ID that is shown has to be the same. Issuer, birth date and name are compared where both give them. A
        name is the same if the groups are that both give (PS3.5 6.2.1.2), but for case, width and what stands between
        its words.
        """
        pairs = (
            ("PatientID", shown.patient_id not in {"", self.patient_id}),
            ("IssuerOfPatientID", _differ(self.issuer_of_patient_id, shown.issuer_of_patient_id)),
            ("PatientName", _is_other_name(self.patient_name, shown.patient_name)),
            ("PatientBirthDate", _differ(self.patient_birth_date, shown.patient_birth_date)),
        )
        return tuple(keyword for keyword, is_other in pairs if is_other)


def _differ(one: str, two: str) -> bool:
    return "" not in {one, two} and one != two


def _is_other_name(one: str, two: str) -> bool:
    return any(a and b and a != b for a, b in zip(_words(one), _words(two), strict=False))


def _words(name: str) -> list[list[str]]:
    """Give the words of each group of a name; what caret and space tell apart, archives mix up."""
    groups = (unicodedata.normalize("NFKC", group).casefold() for group in name.split("="))
    return [[word for word in re.split(r"[\s^]+", group) if word] for group in groups]


UNREADABLE = (
    pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, EOFError, ValueError, OSError, LookupError,
    TypeError, AttributeError, NotImplementedError, RuntimeError, ArithmeticError, MemoryError, struct.error,
    zlib.error,
)  # fmt: skip
"""What reading raises for a file that is no DICOM, or one that a device, a disk or an attacker has broken."""


def _readable(ds: Dataset, keyword: str) -> str:
    try:
        return str(ds.get(keyword) or "").strip("\0 ")
    except UNREADABLE:
        return ""


def _name(ds: Dataset) -> str:
    """Read a name; one whose character set nobody names is read as Latin-1, and is UTF-8 if that makes sense."""
    text = _readable(ds, "PatientName")
    if "SpecificCharacterSet" in ds:
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


@dataclass(frozen=True, slots=True)
class Instance:
    """One SOP instance: its attributes without pixel data, and a way to read it whole.

    Attributes:
        header: the data set without Pixel Data, with its file meta information.
        open: opens the whole instance (a DICOM file, PS3.10) for reading.
    """

    header: FileDataset = field(repr=False)
    open: Callable[[], BinaryIO] = field(repr=False)

    @classmethod
    def read(cls, opener: Callable[[], BinaryIO], label: str) -> "Instance":
        """Read the header of an instance.

        Args:
            opener: opens the DICOM file.
            label: what to call the file in an error.

        Raises:
            UnreadableError: it is no DICOM file, or does not say which instance it is and how it is encoded.
        """
        try:
            with opener() as stream:
                header = pydicom.dcmread(stream, stop_before_pixels=True)
        except UNREADABLE as error:
            raise UnreadableError(f"{label} cannot be read as DICOM: {type(error).__name__}.") from error
        for keyword, ds in (("TransferSyntaxUID", header.file_meta), ("SOPInstanceUID", header)):
            if not ds.get(keyword):
                raise UnreadableError(f"{label} cannot be read as DICOM: it has no {keyword}; send it again.")
        return cls(header=header, open=opener)

    def dataset(self) -> FileDataset:
        """Read the instance whole, pixel data included."""
        with self.open() as stream:
            return pydicom.dcmread(stream)

    @property
    def sop_instance_uid(self) -> str:
        """SOPInstanceUID (0008,0018)."""
        return str(self.header.get("SOPInstanceUID", ""))

    @property
    def sop_class_uid(self) -> str:
        """SOPClassUID (0008,0016)."""
        return str(self.header.get("SOPClassUID", ""))

    @property
    def transfer_syntax_uid(self) -> str:
        """TransferSyntaxUID (0002,0010)."""
        return str(self.header.file_meta.TransferSyntaxUID)

    @property
    def number_of_frames(self) -> int:
        """NumberOfFrames (0028,0008); 1 for a single-frame image."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def identity(self) -> Identity:
        """Whose image it says it is."""
        return Identity.of(self.header)


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice: a frame of an instance.

    Attributes:
        instance: the instance that holds it.
        number: frame number from 1 in a multi-frame instance (PS3.3 C.7.6.6), None in a single-frame one.
    """

    instance: Instance
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one series that belong together as a volume: one echo, b-value, time point, type, orientation.

    Attributes:
        key: what tells it from the other stacks of its series, stable from run to run.
        frames: in no particular order; `volume.load` sorts them by position.
    """

    key: str
    frames: tuple[Frame, ...]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances that hold the frames, each once, in order of first appearance."""
        return tuple({frame.instance.sop_instance_uid: frame.instance for frame in self.frames}.values())

    @property
    def header(self) -> FileDataset:
        """The attributes of the first frame's instance: what routes match on."""
        return self.frames[0].instance.header


@dataclass(frozen=True, slots=True)
class Series:
    """The instances of one series, the newest version of each."""

    series_instance_uid: str
    instances: tuple[Instance, ...]

    @property
    def header(self) -> FileDataset:
        """The attributes of the first instance."""
        return self.instances[0].header


@dataclass(frozen=True, slots=True)
class Study:
    """The series of one study."""

    study_instance_uid: str
    series: tuple[Series, ...]


def series_number(header: Dataset) -> int | None:
    """Give SeriesNumber (0020,0011); None where it is missing or no number, and so in nobody's way."""
    # Without conversion, on which pydicom would raise for what is no number.
    value = getattr(header.get_item("SeriesNumber"), "value", None)
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return int(text) if text.strip().isdecimal() else None


def group(instances: Iterable[Instance]) -> tuple[Study, ...]:
    """Sort instances into studies and series, both ordered by UID, instances by SOPInstanceUID."""
    studies: dict[str, dict[str, dict[str, Instance]]] = {}
    for instance in instances:
        header = instance.header
        by_series = studies.setdefault(str(header.get("StudyInstanceUID", "")), {})
        by_uid = by_series.setdefault(str(header.get("SeriesInstanceUID", "")), {})
        by_uid[instance.sop_instance_uid] = instance
    return tuple(
        Study(
            study_uid,
            tuple(
                Series(series_uid, tuple(by_uid[uid] for uid in sorted(by_uid)))
                for series_uid, by_uid in sorted(by_series.items())
            ),
        )
        for study_uid, by_series in sorted(studies.items())
    )


# Storage classes that have rows and columns and are yet no image to analyse (PS3.4 B.5).
_DERIVED_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map Storage
        "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose Storage
    }
)


def is_image(ds: Dataset) -> bool:
    """Tell whether a data set is an image that a network could look at, judged by its attributes.

    Retired and private classes count as well: what has rows, columns and a bit depth is an image, unless it is
    itself the result of an analysis (SEG, Parametric Map) or a dose grid.
    """
    described: tuple[Any, ...] = (ds.get("Rows"), ds.get("Columns"), ds.get("BitsAllocated"))
    return all(described) and str(ds.get("SOPClassUID", "")) not in _DERIVED_CLASSES
