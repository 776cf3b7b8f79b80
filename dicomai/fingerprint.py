"""The fingerprint of an image: equal when pixels and geometry are, whatever the rest of the header says."""

import hashlib

from pydicom.dataset import FileDataset

from dicomai import pixels
from dicomai.routing import values

# What the pixels mean and where they lie (PS3.3 C.7.6.2, C.7.6.3, C.11.1); sequences of multi-frame objects too.
_GEOMETRY = (
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "RescaleSlope", "RescaleIntercept", "FrameOfReferenceUID",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


def fingerprint(ds: FileDataset) -> str:
    """Hash an image's pixels and geometry.

    Compressed pixels are decoded first, so that the same image in another lossless transfer syntax has the same
    fingerprint; pixels that cannot be decoded are hashed as they are.

    Args:
        ds: the whole data set, with its file meta information.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for keyword in _GEOMETRY:
        element = ds.get(keyword)
        text = element if isinstance(element, str) else "\\".join(values(ds, keyword))
        digest.update(f"{keyword}={text}\n".encode())
    digest.update(_pixels(ds))
    return digest.hexdigest()


def _pixels(ds: FileDataset) -> bytes:
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in ds:
            break
    else:
        return b""
    encoded = bytes(ds[keyword].value or b"")
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian:
        try:
            frames = pixels.stored(ds, range(int(ds.get("NumberOfFrames") or 1)))
            return b"".join(frame.astype(frame.dtype.newbyteorder("<")).tobytes() for frame in frames)
        except pixels.UNDECODABLE:
            return b"encoded:" + str(syntax).encode() + encoded
    return encoded[:-1] if _is_padded(ds, encoded) else encoded


def _is_padded(ds: FileDataset, encoded: bytes) -> bool:
    """Tell whether native pixels of odd length carry the padding byte of PS3.5 8.1.1."""
    bits = int(ds.get("Rows") or 0) * int(ds.get("Columns") or 0) * int(ds.get("NumberOfFrames") or 1)
    bits *= int(ds.get("SamplesPerPixel") or 1) * int(ds.get("BitsAllocated") or 0)
    return len(encoded) == (bits + 7) // 8 + 1
