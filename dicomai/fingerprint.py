"""The fingerprint of an image: equal when pixels and geometry are, whatever the rest of the header says."""

import hashlib
import os
import struct
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomai import pixels
from dicomai.routing import values

# What the pixels mean and where they lie (PS3.3 C.7.6.2, C.7.6.3, C.11.1); sequences of multi-frame objects too.
_GEOMETRY = (
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "RescaleSlope", "RescaleIntercept", "FrameOfReferenceUID",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


_BLOCK = 1024 * 1024
_PIXEL_DATA = (0x7FE0, 0x0010)


def fingerprint_of(stream: BinaryIO) -> str:
    """Hash the pixels and the geometry of the image in a DICOM file; see `fingerprint`.

    Pixels that can be hashed as they lie there are read block by block: of gigabytes, none is in memory for long.
    """
    ds = pydicom.dcmread(stream, stop_before_pixels=True)
    length = _length(stream, ds)
    if length is None:
        stream.seek(0)
        return fingerprint(pydicom.dcmread(stream))
    digest = _geometry(ds)
    left = length - _is_padded(ds, length)
    while left:
        block = stream.read(min(left, _BLOCK))
        if not block:
            raise EOFError("the file was cut while it was read")
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def fingerprint(ds: FileDataset) -> str:
    """Hash an image's pixels and geometry.

    Compressed pixels are decoded first, so that the same image in another lossless transfer syntax has the same
    fingerprint; pixels that cannot be decoded are hashed as they are.

    Args:
        ds: the whole data set, with its file meta information.

    Returns:
        SHA-256 in hexadecimal.
    """
    return _with_pixels(_geometry(ds), ds).hexdigest()


def _length(stream: BinaryIO, ds: FileDataset) -> int | None:
    """Read the head of Pixel Data that is native, little endian and whole; gives its length, None for anything else."""
    if ds.file_meta.get("TransferSyntaxUID") not in {ImplicitVRLittleEndian, ExplicitVRLittleEndian}:
        return None
    is_implicit, is_little_endian = ds.original_encoding
    head = stream.read(8 if is_implicit else 12)
    if not is_little_endian or len(head) < 8 or struct.unpack("<HH", head[:4]) != _PIXEL_DATA:
        return None
    if not is_implicit and head[4:6] not in {b"OB", b"OW"}:
        return None
    length = int.from_bytes(head[-4:], "little")
    begin = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(begin)
    return length if length <= end - begin else None


def _geometry(ds: FileDataset) -> "hashlib._Hash":
    """Begin the hash with what is no pixel."""
    digest = hashlib.sha256()
    for keyword in _GEOMETRY:
        element = ds.get(keyword)
        text = element if isinstance(element, str) else "\\".join(values(ds, keyword))
        digest.update(f"{keyword}={text}\n".encode())
    return digest


def _with_pixels(digest: "hashlib._Hash", ds: FileDataset) -> "hashlib._Hash":
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in ds:
            break
    else:
        return digest
    encoded = bytes(ds[keyword].value or b"")
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian:
        decoded = digest.copy()
        try:
            for frame in pixels.stored(ds, range(int(ds.get("NumberOfFrames") or 1))):
                decoded.update(frame.astype(frame.dtype.newbyteorder("<")).tobytes())
        except pixels.UNDECODABLE:
            digest.update(b"encoded:" + str(syntax).encode() + encoded)
            return digest
        return decoded
    digest.update(encoded[:-1] if _is_padded(ds, len(encoded)) else encoded)
    return digest


def _is_padded(ds: FileDataset, length: int) -> bool:
    """Tell whether native pixels of odd length carry the padding byte of PS3.5 8.1.1."""
    bits = int(ds.get("Rows") or 0) * int(ds.get("Columns") or 0) * int(ds.get("NumberOfFrames") or 1)
    bits *= int(ds.get("SamplesPerPixel") or 1) * int(ds.get("BitsAllocated") or 0)
    return length == (bits + 7) // 8 + 1
