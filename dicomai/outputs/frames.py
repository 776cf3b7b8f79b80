"""The frames of a binary segmentation: where each lies and what it shows, in the bytes of Explicit VR Little Endian.

A hundred segments make thousands of frames, and pydicom writes their functional groups element by element. What tells
one frame from another is its plane and its segment: here each of both is encoded once, and frames are put together.
"""

import io
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from dicomai.findings import Findings, NumberedSegment, areas

PER_FRAME_FUNCTIONAL_GROUPS = Tag("PerFrameFunctionalGroupsSequence")

Frames = Sequence[tuple[int, int]]
"""The frames of an object in their order: index of the segment in `found`, index of the plane in `planes`."""

_ITEM = b"\xfe\xff\x00\xe0"
_TOGETHER = 8  # frames of one bit per voxel: so many fill whole bytes, whatever their size


def presence(findings: Findings, found: Sequence[NumberedSegment]) -> NDArray[np.bool_]:
    """Tell in which slices a segment has voxels; shape (segment, z), segments as in `found`."""
    made = np.zeros((len(found), len(findings.layers[0].labels)), dtype=bool)
    for index, layer in enumerate(findings.layers):
        rows = [row for row, one in enumerate(found) if one.layer == index]
        values = [found[row].segment.number for row in rows]
        for z, counted in enumerate(areas(layer) if rows else ()):
            made[rows, z] = counted[values] > 0
    return made


def overlap(findings: Findings, found: Sequence[NumberedSegment]) -> bool:
    """Tell whether a voxel lies in two segments, which can only be of different layers."""
    maps = [findings.layers[index].labels for index in sorted({one.layer for one in found})]
    for planes in zip(*maps, strict=True) if len(maps) > 1 else ():
        if (np.sum([plane != 0 for plane in planes], axis=0) > 1).any():
            return True
    return False


def describe(frames: Frames, planes: Sequence[Dataset], *, several: bool) -> RawDataElement:
    """Encode the Per-frame Functional Groups Sequence (PS3.3 C.7.6.16).

    Args:
        frames: which frames there are.
        planes: for each plane an item as a frame of it has it; of it are taken the source images and the position.
        several: whether there is more than one segment; a single one is named among the shared functional groups.

    Returns:
        The sequence as if it had been read from a file: pydicom writes it as it is, and parses it where it is asked.
    """
    sources = [_encode(_part(item, "DerivationImageSequence")) for item in planes]
    places = [_encode(_part(item, "PlanePositionSequence")) for item in planes]
    content = _encode(_content())[: -struct.calcsize("<II")]
    segments = range(max(segment for segment, _ in frames) + 1)
    named = [_encode(_identification(segment + 1)) if several else b"" for segment in segments]
    items = io.BytesIO()
    for segment, plane in frames:
        index = struct.pack("<II", segment + 1, plane + 1)
        item = b"".join((sources[plane], content, index, places[plane], named[segment]))  # in the order of their tags
        items.write(_ITEM + struct.pack("<I", len(item)) + item)
    value = items.getvalue()
    return RawDataElement(PER_FRAME_FUNCTIONAL_GROUPS, "SQ", len(value), value, 0, False, True)


def pack(masks: Iterable[NDArray[np.bool_]], voxels: int) -> DataElement:
    """Pack frames of one bit per voxel as Pixel Data (PS3.5 8.1.1): no gap between frames, an even number of bytes.

    Args:
        masks: the frames, shape (y, x).
        voxels: how many each of them has.

    Returns:
        The element with its value in a buffer, which pydicom writes piece by piece: as bytes it would be copied twice.
    """
    packed = io.BytesIO()
    room = np.empty((_TOGETHER, voxels), dtype=bool)
    filled = 0
    for mask in masks:
        room[filled] = mask.ravel()
        filled += 1
        if filled == _TOGETHER:
            packed.write(np.packbits(room, bitorder="little").data)
            filled = 0
    packed.write(np.packbits(room[:filled], bitorder="little").data)
    packed.write(bytes(packed.tell() % 2))
    packed.seek(0)
    return DataElement("PixelData", "OB", packed)


def _part(item: Dataset, keyword: str) -> Dataset:
    part = Dataset()
    part[keyword] = item[keyword]
    return part


def _content() -> Dataset:
    """Make the Frame Content Macro (PS3.3 C.7.6.16.2.2); its last eight bytes are the frame's own."""
    item, part = Dataset(), Dataset()
    item.DimensionIndexValues = [0, 0]
    part.FrameContentSequence = [item]
    return part


def _identification(number: int) -> Dataset:
    """Make the Segment Identification Macro (PS3.3 C.8.20.3.1)."""
    item, part = Dataset(), Dataset()
    item.ReferencedSegmentNumber = number
    part.SegmentIdentificationSequence = [item]
    return part


def _encode(ds: Dataset) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, ds)
    return stream.getvalue()
