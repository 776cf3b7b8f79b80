"""The header of a received data set: everything before its pixels, bounded in what it may take to read it."""

import os
import threading
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

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
_WANTED: list[BaseTag | int] = [
    tag_for_keyword(keyword) or 0
    for keyword in (
        *_UIDS, "Modality", "SeriesDescription", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
        "Rows", "Columns", "BitsAllocated",
    )
]  # fmt: skip


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
        raise UnreadableError(
            f"The data set cannot be understood ({type(error).__name__}); check the instance at its source."
        ) from error


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
