"""The frames of a binary segmentation: which there are, and what they show, one bit for each voxel."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement

from dicomai.findings import Findings, NumberedSegment, extents
from dicomai.outputs.planes import Frames

_BITS = 8


def spans(findings: Findings, found: Sequence[NumberedSegment]) -> NDArray[np.int64]:
    """Tell in which slices a segment has voxels, and in which part of a slice.

    Returns:
        Shape (segment, z, 2), segments as in `found`: the index in the flattened slice from which on its voxels lie,
        and the one before which they end; the same where it has none.
    """
    made = np.zeros((len(found), len(findings.layers[0].labels), 2), np.int64)
    for index, layer in enumerate(findings.layers):
        rows = [row for row, one in enumerate(found) if one.layer == index]
        values = [found[row].segment.number for row in rows]
        for z, (_, starts, stops) in enumerate(extents(layer) if rows else ()):
            made[rows, z, 0], made[rows, z, 1] = starts[values], stops[values]
    return made


def overlap(findings: Findings, found: Sequence[NumberedSegment]) -> bool:
    """Tell whether a voxel lies in two segments, which can only be of different layers."""
    maps = [findings.layers[index].labels for index in sorted({one.layer for one in found})]
    for planes in zip(*maps, strict=True) if len(maps) > 1 else ():
        if (np.sum([plane != 0 for plane in planes], axis=0) > 1).any():
            return True
    return False


def pack(
    findings: Findings,
    found: Sequence[NumberedSegment],
    frames: Frames,
    slices: Sequence[int],
    where: NDArray[np.int64],
) -> DataElement:
    """Pack frames of one bit per voxel as Pixel Data (PS3.5 8.1.1): no gap between frames, an even number of bytes.

    Of a slice only the part is looked at that the segment lies in: a hundred segments have small ones.

    Args:
        findings: label maps of shape (z, y, x).
        found: the segments.
        frames: which frames there are.
        slices: for each plane the index of its slice.
        where: what `spans` gave.

    Returns:
        The element with its value in a buffer, which pydicom writes piece by piece: as bytes it would be copied twice.
    """
    voxels = findings.layers[0].labels[0].size
    packed = io.BytesIO()
    packed.seek(-(-len(frames) * voxels // (2 * _BITS)) * 2 - 1)
    packed.write(b"\0")  # the rest up to here is zeros then
    octets = np.frombuffer(packed.getbuffer(), np.uint8)
    room = np.empty(voxels + _BITS, dtype=bool)
    for index, (row, plane) in enumerate(frames):
        one, (start, stop) = found[row], where[row, slices[plane]]
        labels = findings.layers[one.layer].labels[slices[plane]].ravel()[start:stop]
        octet, before = divmod(index * voxels + int(start), _BITS)
        mask = room[: before + len(labels)]
        mask[:before] = False
        np.equal(labels, one.segment.number, out=mask[before:])
        bits = np.packbits(mask, bitorder="little")
        octets[octet : octet + len(bits)] |= bits
    del octets  # a buffer that something looks into cannot be read
    packed.seek(0)
    return DataElement("PixelData", "OB", packed)
