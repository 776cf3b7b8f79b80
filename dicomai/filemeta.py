"""File meta information for a received data set (PS3.10 7.1), which itself stays as it came."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO

import pydicom
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_preamble
from pydicom.filewriter import write_file_meta_info

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What is announced of a data set before it comes.

    Attributes:
        sop_class_uid: Affected SOP Class UID of a C-STORE request.
        sop_instance_uid: Affected SOP Instance UID of a C-STORE request, well-formed or not.
        transfer_syntax_uid: that of the accepted presentation context.
        source_ae: the calling AE title.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str

    def encode(self) -> bytes:
        """Encode what comes before the data set in a DICOM file: preamble, prefix, file meta information."""
        uid = self.sop_instance_uid.encode("ascii", "replace")
        uid += b"\0" * (len(uid) % 2)
        head = _head(self.sop_class_uid, len(uid), self.transfer_syntax_uid, self.source_ae)
        return head.replace(_STAND_IN * len(uid), uid, 1)


def identify(transfer_syntax_uid: str, data_set: str) -> str:
    """Tell one content from another: the same bytes in another transfer syntax mean something else.

    Args:
        transfer_syntax_uid: how the data set is encoded.
        data_set: SHA-256 of its bytes, in hexadecimal.
    """
    return hashlib.sha256(f"{transfer_syntax_uid} {data_set}".encode()).hexdigest()


def read_head(stream: BinaryIO) -> FileMeta:
    """Read a stored file up to its data set. Raises what pydicom does for no DICOM file."""
    head = stream.read(144)
    head += stream.read(min(int.from_bytes(head[140:144], "little"), _LONGEST))
    meta = pydicom.dcmread(BytesIO(head)).file_meta
    return FileMeta(
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
        str(meta.get("SourceApplicationEntityTitle") or ""),
    )


def data_set_at(head: bytes) -> int | None:
    """Say where the data set begins in a DICOM file (PS3.10 7.1), whatever its group length says.

    Args:
        head: the first bytes of the file.

    Returns:
        The offset; None where the head ends before it, or is that of no DICOM file.
    """
    if head[128:132] != b"DICM":
        return None
    at = 132
    while head[at : at + 2] == b"\x02\0":  # Explicit VR Little Endian (PS3.5 7.1.2)
        is_long = head[at + 4 : at + 6] in _LONG
        start, size = (at + 8, 4) if is_long else (at + 6, 2)
        at = start + size + int.from_bytes(head[start : start + size], "little")
    return at if at + 2 <= len(head) else None


def read_meta(file: BinaryIO) -> FileMetaDataset:
    """Read the file meta information of any DICOM file; the file is left at its data set. Raises as `read_head`."""
    read_preamble(file, force=False)
    return FileMetaDataset(
        read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 0x0002)
    )


_LONG = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_LONGEST = 64 * 1024
_STAND_IN = b"\1"


@lru_cache(maxsize=1000)
def _head(sop_class_uid: str, length: int, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Encode what thousands of instances have in common, with a stand-in of the SOP Instance UID's length."""
    meta = FileMetaDataset()
    for tag, vr, value in (
        (0x00020002, "UI", sop_class_uid),
        (0x00020003, "UI", _STAND_IN.decode() * length),
        (0x00020010, "UI", transfer_syntax_uid),
        (0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        (0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
        (0x00020016, "AE", source_ae),
    ):
        # Scanners send UIDs that break PS3.5 9.1; whether they can be stored is the intake's question.
        meta[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()
