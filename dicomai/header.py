"""The header of a received data set: everything before its pixels, bounded in what it may take to read it."""

import os
import re
import struct
import threading
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from dicomai.errors import StoreError, UnreadableError
from dicomai.study import UNREADABLE, Identity, is_image

MOST_INFLATED = 1024**3
"""How many bytes a deflated data set may have once it is inflated, which takes this much memory."""

_INFLATING = threading.Lock()  # one at a time: what many senders make at once would have no end

_BLOCK = 1024**2
_UNDEFINED = 0xFFFFFFFF  # length (PS3.5 7.1.1)
_ELEMENT_HEAD = 8  # tag, VR and length, of which the long ones have 4 bytes more
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # Float, Double Float, Pixel Data (PS3.3 C.7.6.24, C.7.6.3)
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_SOP_INSTANCE_UID, _CHARACTER_SET = 0x00080018, 0x00080005
_WANTED: list[BaseTag | int] = [
    tag_for_keyword(keyword) or 0
    for keyword in (
        *_UIDS, "Modality", "SeriesDescription", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
        "Rows", "Columns", "BitsAllocated",
    )
]  # fmt: skip
_VR_OF_WANTED = {int(tag): dictionary_VR(tag).encode() for tag in (*_WANTED, _CHARACTER_SET)}
_ELEMENT = struct.Struct("<HH2sH")


@dataclass(frozen=True, slots=True)
class Header:
    """What the index needs of a data set.

    Attributes:
        sop_class_uid: SOPClassUID (0008,0016).
        sop_instance_uid: SOPInstanceUID (0008,0018).
        study_instance_uid: StudyInstanceUID (0020,000D).
        series_instance_uid: SeriesInstanceUID (0020,000E).
        modality: Modality (0008,0060), for people to see.
        description: SeriesDescription (0008,103E), for people to see.
        is_image: see `study.is_image`.
        identity: whose it says it is.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    description: str
    is_image: bool
    identity: Identity

    @classmethod
    def of(cls, ds: Dataset) -> "Header":
        """Take it from a data set.

        Raises:
            UnreadableError: a UID is missing.
        """
        uids = [str(ds.get(keyword) or "") for keyword in _UIDS]
        missing = [keyword for keyword, uid in zip(_UIDS, uids, strict=True) if not uid]
        if missing:
            raise UnreadableError(f"The data set has no {', '.join(missing)}; correct the instance at its source.")
        return cls(
            sop_class_uid=uids[0],
            sop_instance_uid=uids[1],
            study_instance_uid=uids[2],
            series_instance_uid=uids[3],
            modality=_text(ds, "Modality"),
            description=_text(ds, "SeriesDescription"),
            is_image=is_image(ds),
            identity=Identity.of(ds),
        )

    def of_instance(self, sop_instance_uid: str) -> "Header":
        """Give the header of an instance that differs in its UID alone."""
        return Header(
            self.sop_class_uid, sop_instance_uid, self.study_instance_uid, self.series_instance_uid, self.modality,
            self.description, self.is_image, self.identity,
        )  # fmt: skip


def read_header(stream: BinaryIO, transfer_syntax_uid: str) -> Header:
    """Read of a data set, up to its pixels, what the index needs.

    Args:
        stream: at the data set's first byte; left where the reading stopped.
        transfer_syntax_uid: how the data set is encoded; one that is not of the standard has explicit VR.

    Raises:
        UnreadableError: it cannot be understood, or what the index needs is missing.
        StoreError: the disk does not give it back.
    """
    if transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
        return _read(stream, transfer_syntax_uid)
    with _INFLATING:
        return _read(stream, transfer_syntax_uid)


def _read(stream: BinaryIO, transfer_syntax_uid: str) -> Header:
    try:
        if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            stream = _inflated(stream)
        end = _End(stream)
        ds = read_dataset(
            stream,
            is_implicit_VR=transfer_syntax_uid == ImplicitVRLittleEndian,
            is_little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
            stop_when=end.is_reached,
            specific_tags=_WANTED,
        )
        end.refuse_cut()
        return Header.of(ds)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StoreError(f"The storage cannot be read ({error.strerror}); check its disk.") from error
        if isinstance(error, MemoryError):
            raise StoreError("There is not enough memory to read a data set's header; free some.") from error
        raise UnreadableError(
            f"The data set cannot be understood ({type(error).__name__}); check the instance at its source."
        ) from error


_MOST_REMEMBERED = 256
_remembered: dict[tuple[object, ...], Header] = {}


def read_beginning(beginning: bytes, transfer_syntax_uid: str) -> Header | None:
    """Read the header of an image whose data set's beginning holds it in the plainest form; None for any other.

    Where the values of an earlier image come again, as they do within a series but for SOPInstanceUID, so does their
    interpretation: most of what a header costs to read.

    Raises:
        UnreadableError: as `read_header`.
        StoreError: as `read_header`.
    """
    values = None if transfer_syntax_uid in _NOT_PLAIN else _wanted_values(beginning, transfer_syntax_uid)
    uid = values.pop(_SOP_INSTANCE_UID, b"").rstrip(b"\0 ") if values is not None else b""
    if not values or not _PLAIN_UID.fullmatch(uid):
        return None
    key = (transfer_syntax_uid, *values.items())
    known = _remembered.get(key)
    if known is None:
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        known = _remembered[key] = _read(BytesIO(beginning), transfer_syntax_uid)
    return known.of_instance(uid.decode("ascii"))


_NOT_PLAIN = frozenset({ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian})
_SHORT = frozenset(vr.value.encode() for vr in STANDARD_VR - EXPLICIT_VR_LENGTH_32)  # length in two bytes (PS3.5 7.1.2)
_LONG = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
_PLAIN_UID = re.compile(rb"[0-9.]+")
_DELIMITERS = 0xFFFE
_MOST_BYTES = 256  # of a value worth remembering


def _wanted_values(data: bytes, transfer_syntax_uid: str) -> dict[int, bytes] | None:
    """Find what is wanted among the elements up to the pixels.

    None where they are not all plain: of a known VR and length, and, if wanted, of the VR that they ought to have.
    """
    values: dict[int, bytes] = {}
    is_implicit = transfer_syntax_uid == ImplicitVRLittleEndian
    if is_implicit and data[4:6].isalpha():  # the library takes it for explicit then
        return None
    offset, end = 0, len(data) - 12
    while offset <= end:
        group, element, vr, length = _ELEMENT.unpack_from(data, offset)
        tag = group << 16 | element
        if tag in _PIXELS:
            return values
        if group == _DELIMITERS:
            return None
        if is_implicit:
            length = int.from_bytes(data[offset + 4 : offset + 8], "little")
            offset += 8
        elif vr in _SHORT:
            offset += 8
        elif vr in _LONG:
            length = int.from_bytes(data[offset + 8 : offset + 12], "little")
            offset += 12
        else:
            return None
        if tag in _VR_OF_WANTED:
            if length > _MOST_BYTES or not (is_implicit or vr == _VR_OF_WANTED[tag]):
                return None
            values[tag] = data[offset : offset + length]
        offset += length  # an undefined one leads out of the data
    return None


def _text(ds: Dataset, keyword: str) -> str:
    """Read an attribute for people to see; without the NUL characters that PostgreSQL refuses."""
    return str(ds.get(keyword) or "").replace("\0", "")


class _End:
    """Where the reading of a data set ends: at the pixels, or at an end that has to be that of an element.

    The library takes a data set that ends inside an element for one that ends there, and half a UID for a whole one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._element_ends: int | None = 0  # None where only its content tells
        self._is_reached = False

    def is_reached(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        """Look at an element of the top level whose value comes next; tells whether it is the pixels."""
        self._element_ends = self._stream.tell() + length if length != _UNDEFINED else None
        self._is_reached = tag in _PIXELS
        return self._is_reached

    def refuse_cut(self) -> None:
        """Refuse a data set that ended elsewhere; zeros that fill it up are none of it.

        Raises:
            EOFError: it ends inside an element.
        """
        position, size = self._stream.tell(), self._stream.seek(0, os.SEEK_END)
        ends = position if self._is_reached or self._element_ends is None else self._element_ends
        self._stream.seek(ends)
        rest = b"" if position < size else self._stream.read(_ELEMENT_HEAD)
        self._stream.seek(position)
        if ends > size or any(rest):
            raise EOFError("the data set ends inside an element")


def _inflated(stream: BinaryIO) -> BinaryIO:
    """Inflate a data set, which is whole in memory then: some bytes can make gigabytes.

    Raises:
        UnreadableError: it is larger than any that is taken.
    """
    inflate, data = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    while block := inflate.unconsumed_tail or stream.read(_BLOCK):
        data.write(inflate.decompress(block, _BLOCK))
        if data.tell() > MOST_INFLATED:
            raise UnreadableError(
                f"The deflated data set has more than {MOST_INFLATED} bytes; send it in another transfer syntax."
            )
    if not inflate.eof:
        raise EOFError("the deflated data set has no end")
    data.seek(0)
    return data
