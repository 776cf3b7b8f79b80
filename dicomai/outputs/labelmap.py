"""The pixels of a Label Map Segmentation (PS3.3 A.51, C.8.20.2): one frame for each slice, whose values are segments.

A hundred segments make as many frames as one does; but a voxel can lie in one segment only.
"""

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from dicomai.findings import Findings, NumberedSegment

_HEADER = 64  # bytes: the number of segments, and where each begins (PS3.5 G.5)
_LONGEST_RUN = 128

_Labels = NDArray[np.uint8] | NDArray[np.uint16]


def numbered(findings: Findings, found: Sequence[NumberedSegment], planes: Sequence[int]) -> Iterator[_Labels]:
    """Give slices whose values are Segment Numbers (0062,0004), 0 where there is no segment.

    Args:
        findings: label maps of which no two have a segment at the same voxel.
        found: the segments that have voxels.
        planes: which slices.

    Returns:
        Of each slice an array of shape (y, x), of eight bits where the numbers fit in.
    """
    kind = np.uint8 if found[-1].number <= np.iinfo(np.uint8).max else np.uint16
    tables = {}
    for index in sorted({one.layer for one in found}):
        layer = findings.layers[index]
        tables[index] = np.zeros(int(layer.labels.max()) + 1, dtype=kind)
        for one in found:
            if one.layer == index:
                tables[index][one.segment.number] = one.number
    for z in planes:
        first, *others = (table[findings.layers[index].labels[z]] for index, table in tables.items())
        for other in others:
            first |= other  # where one is not 0 the others are
        yield first


def pixels(planes: Iterator[_Labels], header: Dataset, syntax: str) -> DataElement:
    """Encode slices as Pixel Data (PS3.5 8.1, 8.2.2).

    Args:
        planes: their values.
        header: the object; its Image Pixel attributes say what the values are.
        syntax: one of `profiles.LABEL_MAP_SYNTAXES`.

    Returns:
        The element; in Explicit VR Little Endian its value is in a buffer, which pydicom writes piece by piece.
    """
    if syntax == RLELossless:
        made = DataElement("PixelData", "OB", encapsulate([_run_lengths(plane) for plane in planes]))
        made.is_undefined_length = True
        return made
    buffer = io.BytesIO()
    for plane in planes:
        buffer.write(plane.astype(plane.dtype.newbyteorder("<"), copy=False).data)
    buffer.write(bytes(buffer.tell() % 2))
    buffer.seek(0)
    return DataElement("PixelData", "OB" if header.BitsAllocated == 8 else "OW", buffer)


def _run_lengths(plane: _Labels) -> bytes:
    """Encode a frame by its runs (PS3.5 Annex G).

    Of the libraries' encoders one ends the process over some small frames, the other takes seconds for a volume.
    """
    octets = plane.astype(plane.dtype.newbyteorder(">"), copy=False).view(np.uint8).reshape(*plane.shape, -1)
    segments = [_segment(octets[:, :, index]) for index in range(octets.shape[2])]  # the most significant byte first
    offsets = [_HEADER + sum(map(len, segments[:index])) for index in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _segment(octets: NDArray[np.uint8]) -> bytes:
    """Encode bytes, shape (y, x), as pairs of length and value; no run goes on in the next row (PS3.5 G.3.1).

    A single byte is a literal run of one, which is as long: labels have few of them.
    """
    begins = np.ones(octets.shape, dtype=bool)
    begins[:, 1:] = octets[:, 1:] != octets[:, :-1]
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=octets.size)
    pieces = -(-lengths // _LONGEST_RUN)
    counts = np.full(pieces.sum(), _LONGEST_RUN)
    counts[np.cumsum(pieces) - 1] = lengths - _LONGEST_RUN * (pieces - 1)
    made = np.empty((len(counts), 2), dtype=np.uint8)
    made[:, 0] = (257 - counts) % 256  # 1 - n in two's complement for n alike, 0 for a literal run of one
    made[:, 1] = np.repeat(octets.ravel()[starts], pieces)
    return made.tobytes()
