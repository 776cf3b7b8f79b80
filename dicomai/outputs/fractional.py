"""Probabilities of segments: a Segmentation (PS3.3 A.51, C.8.20.2) of type FRACTIONAL, beside the binary one.

A voxel's value is its probability in 255ths. The binary segmentation says where a segment is held to be, and reports
refer to that; this one says how sure the model was of each voxel. Few viewers show it.
"""

import io
from collections.abc import Iterator, Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from dicomai.errors import InferenceError
from dicomai.findings import Findings, NumberedSegment, Probability
from dicomai.outputs.common import geometry
from dicomai.outputs.planes import in_order, put_frames
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.outputs.seg import outline

SOP_CLASS_UID = SegmentationStorage

MOST = 255
"""Maximum Fractional Value (0062,000E): what a probability of 1 is stored as."""

_TOGETHER = 16  # slices: a network's answer lies in memory with z nearest, so that one alone is read as slowly as these


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Encode the probabilities as one Segmentation object; None where the findings have none, or all are 0.

    A frame is there where a probability is over 0 when it is rounded, and a segment where it has a frame.

    Args:
        findings: their probabilities have the shape (z, y, x), z as in `sources.frames`.
        sources: the images that they lie on.
        provenance: who made it, and under which identifiers.

    Returns:
        The object; its per-frame functional groups are encoded until they are asked for, its pixels lie in a buffer.

    Raises:
        InferenceError: the probabilities lie on another grid than the images.
        GeometryError: an image does not say where it lies.
    """
    if not findings.probabilities:
        return None
    place = geometry(sources)
    order = in_order(range(len(sources.frames)), place)
    pixels = io.BytesIO()
    found: list[NumberedSegment] = []
    shown: list[tuple[int, int]] = []  # of each frame the index of its segment, and of its slice
    for one in findings.probabilities:
        _check(one, sources)
        begin = len(shown)
        for z, frame in _frames(one.values, order):
            pixels.write(frame.data)
            shown.append((len(found), z))
        if len(shown) > begin:
            voxels = int(np.count_nonzero(one.values))
            found.append(NumberedSegment(len(found) + 1, one.layer, one.segment, voxels))
    if not found:
        return None
    with_frames = {z for _, z in shown}
    slices = [z for z in order if z in with_frames]
    plane = {z: n for n, z in enumerate(slices)}
    whole, pattern = outline(
        "fractional",
        found,
        sources,
        provenance,
        place,
        "UNDEFINED" if len(found) > 1 else "NO",  # a voxel has a share of several segments
        content_label="PROBABILITY",
        content_description=f"Probabilities by {provenance.algorithm.name}"[:64],
        segmentation_type=hd.seg.SegmentationTypeValues.FRACTIONAL,
        fractional_type=hd.seg.SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=MOST,
    )
    put_frames(whole, pattern, [(row, plane[z]) for row, z in shown], slices, sources, place)
    pixels.write(bytes(pixels.tell() % 2))
    pixels.seek(0)
    whole.add(DataElement("PixelData", "OB", pixels))
    return whole


def _check(one: Probability, sources: Sources) -> None:
    expected = (len(sources.frames), int(sources.header.Rows), int(sources.header.Columns))
    if one.values.shape != expected:
        raise InferenceError(
            f"The probabilities of {one.segment.label} have the shape {one.values.shape} and the images have"
            f" {expected}: they lie on another grid."
        )


def _frames(values: NDArray[np.float32], order: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Give the slices with a value over 0 in 255ths, each with its index, in an order that ascends or descends."""
    for begin in range(0, len(order), _TOGETHER):
        some = order[begin : begin + _TOGETHER]
        first = min(some)
        rounded = np.rint(np.ascontiguousarray(values[first : max(some) + 1]) * MOST).astype(np.uint8)
        for z in some:
            if rounded[z - first].any():
                yield z, rounded[z - first]
