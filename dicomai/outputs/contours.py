"""Outlines of segments as polygons, for objects that draw them: structure sets and presentation states.

Corners lie on the corners of voxels: a polygon has exactly the area of its voxels, and the voxels whose centres it
encloses are the mask again. A line half-way between voxel centres, as a picture shows it, would lose half a voxel at
every outline.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicomai import render
from dicomai.findings import Findings, NumberedSegment
from dicomai.outputs.keyimage import Areas

Polygon = NDArray[np.float64]
"""Shape (n, 2): corners (x, y) in voxels, 0 at the centre of the first one; the last corner joins the first."""

MOST_PARTS = 10_000
"""Parts and holes that are outlined, beside the first part of each segment in each slice."""

_Ring = NDArray[np.int64]  # corners of voxels (x, y), a voxel apart; (0, 0) is the first voxel's top left corner


def masks(
    findings: Findings, found: Sequence[NumberedSegment], areas: Areas
) -> Iterator[tuple[NumberedSegment, int, NDArray[np.bool_]]]:
    """Give the mask of each segment in each slice that it lies on: the segment, the slice, shape (y, x).

    Args:
        findings: label maps of shape (z, y, x).
        found: the segments that have voxels.
        areas: their voxels in each slice.

    Returns:
        Segment by segment, slices ascending.
    """
    for one in found:
        labels, value = findings.layers[one.layer].labels, one.segment.number
        for z in np.flatnonzero(areas[one.layer, value]):
            yield one, int(z), labels[z] == value


def speckled(findings: Findings, found: Sequence[NumberedSegment], areas: Areas) -> bool:
    """Tell whether masks are in more than `MOST_PARTS` pieces: outlines would take minutes, and help nobody.

    Args:
        findings: label maps of shape (z, y, x).
        found: the segments that have voxels.
        areas: their voxels in each slice.
    """
    pieces = 0
    for _, _, mask in masks(findings, found, areas):
        shown = np.pad(_cropped(mask)[0], 1)
        # Parts that touch at a corner are apart, and so holes that do are one; what is around the mask is no hole.
        pieces += ndimage.label(shown)[1] + ndimage.label(~shown, np.ones((3, 3)))[1] - 2
        if pieces > MOST_PARTS:
            return True
    return False


def outlines(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Outline a mask, of shape (y, x), with a polygon around each part and one around each hole: to be drawn."""
    shown, corner = _cropped(mask)
    return [_turns(ring) - 0.5 + corner for ring in _rings(shown)] if shown.size else []


def polygons(mask: NDArray[np.bool_], most: int) -> list[Polygon]:
    """Outline a mask: a polygon for each part that is connected by the sides of voxels.

    A hole is joined to the outline around it by a channel without width, there and back along the sides of voxels (the
    'keyhole' of PS3.3 C.8.8.6.3), so that it is left out however a reader combines polygons. Parts that touch at a
    corner only are polygons of their own.

    Args:
        mask: shape (y, x).
        most: corners of a polygon. A mask of which one would have more is cut in two, side by side, and so on: together
            the polygons enclose the same voxels.
    """
    shown, corner = _cropped(mask)
    if not shown.size:
        return []
    made = [_turns(ring) - 0.5 for ring in _joined(_rings(shown))]
    if any(len(polygon) > most for polygon in made):
        axis = int(np.argmax(shown.shape))
        first, second = np.array_split(shown, 2, axis=axis)
        aside = (first.shape[1], 0) if axis else (0, first.shape[0])
        made = [*polygons(first, most), *(polygon + aside for polygon in polygons(second, most))]
    return [polygon + corner for polygon in made]


def _cropped(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Give the part of a mask that is not empty, and the place (x, y) of its first voxel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return mask[:0], (0, 0)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(columns[0]), int(rows[0]))


def _rings(mask: NDArray[np.bool_]) -> list[_Ring]:
    """Follow the sides of voxels around a mask: outer rings and those of holes, the ones turning against the others.

    An outline half-way between voxel centres goes through the middle of each side: the corners are those between one
    side and the next.
    """
    rings = []
    for line in render.outlines(mask):
        here, after = line[:-1], line[1:]
        corners = np.where(here % 1 > 0, here, np.where(after % 1 > 0, after, (here + after) / 2))
        rings.append(np.rint(corners[:, ::-1] + 0.5).astype(np.int64))
    return rings


def _joined(rings: Sequence[_Ring]) -> list[_Ring]:
    """Join each hole to the ring around it, or to another hole on the way there.

    From the first of its leftmost corners the channel goes left, between voxels of the mask, to the next corner of any
    ring: that ring begins further left. So, from right to left, a hole is whole when its turn comes.
    """
    corners = np.concatenate(rings)
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    place_of = np.concatenate([np.arange(len(ring)) for ring in rings])
    width = corners[:, 0].max() + 1
    keys = corners[:, 1] * width + corners[:, 0]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = {index: int(np.lexsort((ring[:, 1], ring[:, 0]))[0]) for index, ring in enumerate(rings) if _is_hole(ring)}
    channels: dict[int, list[tuple[int, _Ring]]] = {}
    for hole in sorted(starts, key=lambda index: -int(rings[index][starts[index], 0])):
        x, y = rings[hole][starts[hole]]
        before = order[np.searchsorted(ordered, y * width + x) - 1]
        whole = _with_loops(rings[hole], channels.get(hole, []), starts[hole])
        channels.setdefault(int(ring_of[before]), []).append((int(place_of[before]), whole))
    return [_with_loops(ring, channels.get(i, []), 0) for i, ring in enumerate(rings) if i not in starts]


def _with_loops(ring: _Ring, loops: Sequence[tuple[int, _Ring]], start: int) -> _Ring:
    """Give a ring from its corner `start`, with each loop gone along at its place and back: there, around, and on."""
    turned = np.roll(ring, -start, axis=0)
    pieces, done = [], 0
    for place, loop in sorted((((place - start) % len(ring), loop) for place, loop in loops), key=lambda one: one[0]):
        pieces += [turned[done : place + 1], loop, loop[:1]]
        done = place
    return np.concatenate([*pieces, turned[done:]])


def _is_hole(ring: _Ring) -> bool:
    """Tell a hole's ring from an outer one, by the sign of its area."""
    x, y = ring[:, 0], ring[:, 1]
    return bool(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) < 0)


def _turns(ring: _Ring) -> NDArray[np.float64]:
    """Leave out the corners at which a ring goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    straight = (before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]) & ((before * after).sum(axis=1) > 0)
    return np.asarray(ring[~straight], dtype=np.float64)
