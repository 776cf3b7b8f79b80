"""Frames -> array: pixel data decoded and rescaled to HU or other units; no geometry.

Compressed pixel data goes through pydicom's decoders (GDCM, pylibjpeg, pyjpegls). MONOCHROME1 is not inverted, and
Pixel Padding Value is left as it is: what they mean for a network is for its bundle to say.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import as_pixel_options, get_expected_length
from pydicom.pixels.utils import decompress as decompressed
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from dicomai.errors import NotAcceptedError, StoreError, UnreadableError
from dicomai.stacks import attributes, number
from dicomai.study import Frame, Instance

# Lossy by their process (PS3.5 8.2.1), and lossy unless the image says that it is not (PS3.5 8.2.3, 8.2.4, A.4).
_ALWAYS_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
_PERHAPS_LOSSY = frozenset({JPEGLSNearLossless, JPEG2000, JPEG2000MC, HTJ2K})

_EOI = b"\xff\xd9"  # ends every JPEG and JPEG-LS (ISO 10918-1 B.1.1.3, ISO 14495-1)

# SOF0 to SOF15 without DHT, JPG and DAC, which lie among them.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

# Which of pydicom's plugins decodes: the ones that answer every broken codestream with an exception come first. GDCM
# ends the process for some JPEG-LS of another size than the header says, pylibjpeg-rle raises what is no Exception.
_ANY = ("pylibjpeg", "pyjpegls", "pillow", "gdcm")
_PLUGINS = {RLELossless: ("pydicom",)}

_INTEGERS = (np.uint8, np.uint16, np.int16, np.int32)

# What pydicom and the decoders behind it raise for content that they cannot make sense of.
UNDECODABLE = (
    InvalidDicomError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError,
    OSError, struct.error, zlib.error,
)  # fmt: skip


def is_lossy(header: FileDataset) -> bool:
    """Tell whether an image was ever compressed with loss: by LossyImageCompression (0028,2110) or transfer syntax.

    JPEG 2000 and near-lossless JPEG-LS can be without loss: there LossyImageCompression "00" is believed.
    """
    stated = str(header.get("LossyImageCompression") or "")
    syntax = header.file_meta.TransferSyntaxUID
    return stated == "01" or syntax in _ALWAYS_LOSSY or (syntax in _PERHAPS_LOSSY and stated != "00")


def check(instance: Instance) -> None:
    """Refuse what is no grey image, or says of its pixels what cannot be; judged by the header alone.

    Raises:
        NotAcceptedError: colour.
        UnreadableError: an attribute of the Image Pixel module (PS3.3 C.7.6.3) is missing or contradicts another.
    """
    header, uid = instance.header, instance.sop_instance_uid
    photometric = str(header.get("PhotometricInterpretation", "")).strip()
    if header.get("SamplesPerPixel", 1) != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise NotAcceptedError(
            f"Instance {uid} is no grey image (PhotometricInterpretation '{photometric}'): only MONOCHROME1 and"
            " MONOCHROME2 can be analysed."
        )
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if not isinstance(header.get(keyword), int):
            raise UnreadableError(
                f"Instance {uid} has no single number in {keyword}, without which pixels say nothing."
            )
    if header.get("HighBit", header.BitsStored - 1) != header.BitsStored - 1:
        raise UnreadableError(
            f"Instance {uid} has HighBit {header.HighBit} with BitsStored {header.BitsStored}, a layout that DICOM has"
            " retired: send it re-encoded."
        )


def decode(frames: Sequence[Frame], threads: int) -> NDArray[Any]:
    """Decode frames of one size, and rescale them.

    Args:
        frames: in the order of z; every one has the first one's Rows and Columns.
        threads: how many instances are read at a time. It hides the time that storage takes; the decoders of
            compressed pixel data run one at a time.

    Returns:
        Shape (z, y, x). Values after Modality LUT or rescaling (PS3.3 C.11.1), frame by frame where a multi-frame
        instance says so; in the smallest of uint8, uint16, int16 and int32 that holds all that BitsStored, slope
        and intercept allow, or in float32 where these are no whole numbers.

    Raises:
        UnreadableError: pixel data is missing, truncated or cannot be decoded, or its rescaling has no meaning.
        NotAcceptedError: the array does not fit into memory.
        StoreError: the storage did not give an instance.
    """
    header = frames[0].instance.header
    size = (int(header.Rows), int(header.Columns))
    rescales = [_rescale(frame) for frame in frames]
    try:
        array = np.empty((len(frames), *size), dtype=_dtype(frames, rescales))
    except MemoryError as error:
        raise NotAcceptedError(
            f"The stack has {len(frames)} slices of {size[1]} x {size[0]} pixels, which do not fit into this machine's"
            " memory: send a smaller series, or run it on a larger machine."
        ) from error
    places: dict[str, list[int]] = {}
    for z, frame in enumerate(frames):
        places.setdefault(frame.instance.sop_instance_uid, []).append(z)

    def fill(zs: list[int]) -> None:
        instance = frames[zs[0]].instance
        decoded = _stored(instance, [(frames[z].number or 1) - 1 for z in zs])
        for z in zs:
            try:
                array[z] = _units(next(decoded), rescales[z], array.dtype)
            except UNDECODABLE as error:
                which = "" if frames[z].number is None else f", frame {frames[z].number},"
                raise UnreadableError(
                    f"Pixel data of instance {instance.sop_instance_uid}{which} cannot be decoded"
                    f" ({instance.header.file_meta.TransferSyntaxUID.name}): {_first_line(error)}; send it again."
                ) from error

    _each(fill, list(places.values()), threads)
    return array


def _each(work: Callable[[list[int]], None], jobs: list[list[int]], threads: int) -> None:
    """Do jobs in threads; the first failure drops those that have not begun and is raised."""
    with ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="volume") as pool:
        try:
            for _ in pool.map(work, jobs):
                pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _stored(instance: Instance, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Decode the stored values of some frames of an instance, each of shape (y, x)."""
    try:
        with instance.open() as stream:
            content = stream.read()
    except OSError as error:
        raise StoreError(
            f"Instance {instance.sop_instance_uid} cannot be read from storage: {type(error).__name__}."
        ) from error
    yield from stored(pydicom.dcmread(BytesIO(content)), indices)


def stored(ds: FileDataset, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Decode the stored values of some frames, by decoders that survive broken pixel data.

    Args:
        ds: the whole data set of an instance.
        indices: the frames wanted, from 0.

    Yields:
        One frame at a time, of shape (y, x), in colour (y, x, samples) as stored.

    Raises:
        ValueError: pixel data is missing or broken; so do RuntimeError, AttributeError and their like, as the
            decoders raise them.
    """
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    decoder = get_decoder(syntax)
    if not syntax.is_encapsulated:
        # Padding beyond the last frame is harmless; pydicom would warn of it for every image.
        expected = _native_length(ds)
        if len(ds.PixelData) > expected:
            ds.PixelData = ds.PixelData[:expected]
        for index in indices:
            yield decoder.as_array(ds, raw=True, index=index)[0]
        return
    options = as_pixel_options(ds, number_of_frames=1)
    options.pop("extended_offsets", None)
    encoded = _codestreams(ds)
    plugin = _plugin(syntax)
    for index in indices:
        _check_codestream(encoded[index], ds)
        single = encapsulate([encoded[index]])
        yield decoder.as_array(single, raw=True, index=0, decoding_plugin=plugin, **options)[0]


def decompress(ds: FileDataset) -> None:
    """Decompress pixel data in place, by decoders that survive broken pixel data, with the attributes that go with it.

    Colour that was compressed with loss as YBR becomes RGB, as readers of JPEG make it; other samples stay what they
    are. The transfer syntax becomes Explicit VR Little Endian.

    Args:
        ds: the whole data set of an instance, encapsulated.

    Raises:
        ValueError: as `stored`.
    """
    for codestream in _codestreams(ds):
        _check_codestream(codestream, ds)
    plugin = _plugin(UID(ds.file_meta.TransferSyntaxUID))
    decompressed(ds, as_rgb=is_lossy(ds), generate_instance_uid=False, decoding_plugin=plugin)
    if len(ds.PixelData) != _native_length(ds):  # decoders give a sample of up to 8 bits one byte, whatever the header
        raise ValueError(f"its pixel data are {len(ds.PixelData)} bytes, and not {_native_length(ds)}")


def _codestreams(ds: FileDataset) -> list[bytes]:
    """Give the encoded frames of encapsulated pixel data."""
    tables = as_pixel_options(ds, number_of_frames=1).get("extended_offsets")
    frames = int(ds.get("NumberOfFrames") or 1)
    return list(generate_frames(ds.PixelData, number_of_frames=frames, extended_offsets=tables))


def _plugin(syntax: UID) -> str:
    """Choose the decoder; '' leaves it to the library, which then says what is missing."""
    available = get_decoder(syntax).available_plugins
    return next((name for name in _PLUGINS.get(syntax, _ANY) if name in available), "")


def _check_codestream(codestream: bytes, ds: FileDataset) -> None:
    """Refuse what its decoder would not answer well.

    CharLS takes seconds to see that a JPEG-LS is cut off; GDCM does not survive each JPEG of another size than the
    header states.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax in JPEGLSTransferSyntaxes and not codestream.rstrip(b"\0\xff").endswith(_EOI):  # padded with either
        raise ValueError("the codestream ends early")
    if syntax in JPEGTransferSyntaxes:
        precision, rows, columns, samples = _jpeg_frame(codestream)
        if (rows, columns, samples) != (ds.Rows, ds.Columns, ds.SamplesPerPixel) or precision > ds.BitsAllocated:
            raise ValueError(f"the JPEG has {rows} rows, {columns} columns, {samples} samples of {precision} bits")


def _jpeg_frame(codestream: bytes) -> tuple[int, int, int, int]:
    """Read precision, rows, columns and samples from a JPEG's frame header (ISO 10918-1 B.2.2)."""
    at = 2  # after SOI
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", codestream, at + 1)
        if marker in _FRAME_HEADERS:
            found: tuple[int, int, int, int] = struct.unpack_from(">BHHB", codestream, at + 4)
            return found
        at += 2 + length
    raise ValueError("the JPEG has no frame header")


def _native_length(ds: FileDataset) -> int:
    length = get_expected_length(ds)
    return length + length % 2


@dataclass(frozen=True, slots=True)
class _Rescale:
    """How stored values become units (PS3.3 C.11.1): the attributes, and what they come to as whole numbers."""

    source: Dataset
    whole: tuple[int, int] | None  # (slope, intercept); None where it takes more than whole numbers


def _rescale(frame: Frame) -> _Rescale:
    source = attributes(frame, "PixelValueTransformationSequence")
    if source.get("ModalityLUTSequence"):
        return _Rescale(source, None)
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    if slope is None and intercept is None:
        return _Rescale(source, (1, 0))
    if slope is None or intercept is None or slope == 0:
        raise UnreadableError(
            f"Instance {frame.instance.sop_instance_uid} has RescaleSlope {slope} with RescaleIntercept {intercept},"
            " which give no values: send it with both."
        )
    whole = (int(slope), int(intercept)) if slope.is_integer() and intercept.is_integer() else None
    return _Rescale(source, whole)


def _dtype(frames: Sequence[Frame], rescales: Sequence[_Rescale]) -> np.dtype[Any]:
    """Choose the smallest type that holds every value which BitsStored, slope and intercept allow."""
    reach = []
    for frame, rescale in zip(frames, rescales, strict=True):
        if rescale.whole is None:
            return np.dtype(np.float32)
        header, (slope, intercept) = frame.instance.header, rescale.whole
        bits, signed = int(header.BitsStored), int(header.PixelRepresentation)
        lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        reach += [lowest * slope + intercept, highest * slope + intercept]
    for kind in _INTEGERS:
        if np.iinfo(kind).min <= min(reach) and max(reach) <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def _units(stored: NDArray[Any], rescale: _Rescale, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rescale stored values; integers stay exact."""
    if dtype.kind == "f" or rescale.whole is None:
        return apply_modality_lut(stored, rescale.source)
    slope, intercept = rescale.whole
    found = stored if rescale.whole == (1, 0) else stored.astype(np.int64) * slope + intercept
    if found.min() < np.iinfo(dtype).min or found.max() > np.iinfo(dtype).max:
        raise ValueError("values lie beyond what BitsStored allows")
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:") or type(error).__name__
