"""What lies beside the pixels in Pixel Data: bytes after the last one, comments and application data of a JPEG."""

import re
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

_JPEG = frozenset({*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes})
_JPEG_2000 = frozenset({*JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL})

# COM and APPn, but what decoders go by: APP0 (JFIF), APP8 (colour transform of JPEG-LS), APP14 (Adobe).
_TEXT = frozenset({0xFE, *range(0xE0, 0xF0)}) - {0xE0, 0xE8, 0xEE}
_EOI, _SOS = 0xD9, 0xDA
_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # none of it is in coded data (ISO 10918-1 B.1.1.5, 14495-1 A)

_TEXT_2000, _SOT = 0x64, 0x90  # COM, and what begins the first tile (ISO 15444-1 Annex A)


def strip(ds: Dataset, syntax: UID) -> None:
    """Take out of Pixel Data what is no pixel; every pixel stays as it is.

    Of native and of JPEG, JPEG-LS and JPEG 2000 pixel data; of others nothing is known.

    Raises:
        ValueError, AttributeError and the like: its length or its frames cannot be made out, see `study.UNREADABLE`.
    """
    if not ds.get("PixelData"):
        return
    element = ds["PixelData"]
    if not syntax.is_encapsulated:
        length = get_expected_length(ds)
        length += length % 2  # where words are big endian, the last pixel of an odd number lies behind the padding
        if len(element.value) > length:
            element.value = element.value[:length]
    elif syntax in _JPEG | _JPEG_2000:
        frames = list(generate_frames(element.value, number_of_frames=int(ds.get("NumberOfFrames") or 1)))
        bare = [_even(b"".join(_jpeg(one) if syntax in _JPEG else _jpeg_2000(one))) for one in frames]
        if bare != frames:
            element.value = encapsulate(bare, has_bot=False)
            for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                if keyword in ds:
                    del ds[keyword]


def _jpeg(frame: bytes) -> Iterator[bytes]:
    """Give the parts of a frame that stay, up to the end of the image."""
    yield frame[:2]
    at = 2
    while found := _MARKER.search(frame, at):
        yield frame[at : found.start()]  # coded data
        kind, at = frame[found.start() + 1], found.start()
        if kind == _EOI:
            yield frame[at : at + 2]
            return
        end = _end(frame, at)
        if kind not in _TEXT:
            yield frame[at:end]
        at = end
    yield frame[at:]


def _jpeg_2000(frame: bytes) -> Iterator[bytes]:
    """Give the parts of a frame that stay: comments of its main header do not, nor what follows its end."""
    yield frame[:2]
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != _SOT:
        end = _end(frame, at)
        if frame[at + 1] != _TEXT_2000:
            yield frame[at:end]
        at = end
    last = frame.rfind(b"\xff\xd9", at)  # which coded data never holds
    yield frame[at : last + 2] if last >= 0 else frame[at:]


def _end(frame: bytes, at: int) -> int:
    """Say where a marker segment ends; its length counts itself."""
    return at + 2 + max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
