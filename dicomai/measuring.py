"""Measuring segments: label map + volume -> numbers in mm and in the images' units, on the source's own grid.

Positions come from the affine, so that non-square pixels, oblique and sheared stacks are measured as they lie. A
voxel counts as a body: a diameter reaches to the middle of its outer faces, which is where the surface of a mesh lies
(IBSI L0JK), so that a rod of ten voxels is ten voxels long. An intensity is that of the voxels that are no padding.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from dicomai.bundle import Wanted
from dicomai.errors import InferenceError, NotAcceptedError
from dicomai.findings import Layer, Measurement
from dicomai.quantities import ATTENUATION, MAXIMUM, MEAN, MINIMUM, SUV, Kind
from dicomai.stacks import attributes, number
from dicomai.study import Frame
from dicomai.volume import Volume

_CHUNK = 512  # rows of a table of distances at a time: a large surface has thousands of corners
_FACES = np.vstack([np.eye(3), -np.eye(3)]) / 2  # from a voxel's centre to the middle of each face, (z, y, x)
_SIDES = np.vstack([np.eye(2), -np.eye(2)]) / 2  # from a pixel's centre to the middle of each side, (y, x)
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of a row of voxels, (z, y); and those on its other side


def check(wanted: Sequence[Wanted], frames: Sequence[Frame], name: str) -> None:
    """Refuse images whose values are not in the unit that a bundle measures them in, before a pixel is read.

    Args:
        wanted: what the bundle measures.
        frames: of the images that its label maps will lie on.
        name: the bundle's, for the sentence.

    Raises:
        NotAcceptedError: an intensity is asked for that these images do not have.
    """
    for one in wanted:
        if one.quantity.kind is Kind.INTENSITY:
            for frame in frames:
                why = _not_in_unit(one, frame)
                if why:
                    raise NotAcceptedError(
                        f"{name} measures {one.name.meaning} in {one.unit.value}, and {why}: leave that measurement out"
                        " of its dicomai.toml, or send images that have it."
                    )


def _not_in_unit(wanted: Wanted, frame: Frame) -> str:
    """Say why the values of a frame are not in a unit; empty where they are."""
    header = frame.instance.header
    modality = header.get("Modality")
    if modality != wanted.quantity.modality:
        return f"the images have the Modality {modality}, not {wanted.quantity.modality}"
    rescale = attributes(frame, "PixelValueTransformationSequence")
    if header.get("PixelPaddingValue") is not None and rescale.get("ModalityLUTSequence"):
        return "the images have a ModalityLUTSequence and a PixelPaddingValue, which can then not be told from values"
    if wanted.name == ATTENUATION:  # PS3.3 C.11.1.1.2: HU where CT says no Rescale Type
        if rescale.get("RescaleIntercept") is None:
            return "the images have no RescaleIntercept: their values are not Hounsfield units"
        if rescale.get("RescaleType") not in (None, "", "HU"):
            return f"the images have the RescaleType {rescale.RescaleType}, not HU"
    if wanted.name == SUV:  # PS3.3 C.8.9.1: by body weight where GML says no SUV Type
        if header.get("Units") != "GML":
            return f"the images have the Units {header.get('Units')}, not GML"
        if header.get("SUVType") not in (None, "", "BW"):
            return f"the images have the SUVType {header.SUVType}, not BW"
    return ""


def measure(wanted: Sequence[Wanted], layer: Layer, counts: NDArray[np.intp], volume: Volume) -> Iterator[Measurement]:
    """Measure the segments of a layer that have voxels.

    Args:
        wanted: what is to be measured of which segments.
        layer: labels of shape (z, y, x), on the grid of `volume`.
        counts: how many voxels each number of the label map has.
        volume: what the labels lie on.

    Raises:
        InferenceError: a number is none, as of intensities that are infinite, or of a segment that is all padding.
        UnreadableError: PixelPaddingValue is no number.
    """
    found = [one for one in layer.segments if one.number < len(counts) and counts[one.number]]
    more = any(one.quantity.kind is not Kind.VOLUME for one in wanted)
    boxes = ndimage.find_objects(layer.labels) if more and found else []
    padding = cache(lambda z: _padding(volume, z))
    for segment in found:
        box = boxes[segment.number - 1] if more else ()
        body = _Body(layer.labels, segment.number, box, int(counts[segment.number]), volume, padding)
        for one in wanted:
            if one.wants(segment):
                if one.quantity.kind is Kind.INTENSITY and not len(body.intensities):
                    raise InferenceError(
                        f"The {one.name.meaning} of {segment.label} cannot be measured: all of its voxels have the"
                        " PixelPaddingValue of the images; leave padding out of the segment, or that measurement."
                    )
                value = body.value(one) * one.scale
                yield Measurement(one.name, value, one.unit, segment, one.method, one.derivation)


def _padding(volume: Volume, z: int) -> tuple[float, float] | None:
    """Give the lowest and the highest value of a slice that are padding (PS3.3 C.7.5.1.1.2); None where it has none.

    They are rescaled as the slice is. Some write them signed where pixels are not, or the other way round.
    """
    if not volume.frames:
        return None
    frame = volume.frames[z]
    header, rescale = frame.instance.header, attributes(frame, "PixelValueTransformationSequence")
    first = number(header, "PixelPaddingValue")
    if first is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    bits, signed = int(header.BitsAllocated), bool(header.PixelRepresentation)
    stored = [int(value) % (1 << bits) for value in (first, first if limit is None else limit)]
    stored = [value - (1 << bits) if signed and value >> (bits - 1) else value for value in stored]
    slope, intercept = number(rescale, "RescaleSlope"), number(rescale, "RescaleIntercept")
    values = np.asarray(stored, np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    if volume.array.dtype.kind == "f":
        values = values.astype(volume.array.dtype)
    return float(values.min()), float(values.max())


class _Body:
    """The voxels of one segment; what is measured once is kept."""

    def __init__(
        self,
        labels: NDArray[np.integer],
        number: int,
        box: tuple[slice, ...],
        voxels: int,
        volume: Volume,
        padding: Callable[[int], tuple[float, float] | None],
    ) -> None:
        self._labels, self._number, self._box, self._voxels, self._volume = labels, number, box, voxels, volume
        self._padding = padding

    def value(self, wanted: Wanted) -> float:
        """Give a quantity in mm3, mm, the images' unit, or as a count."""
        kind = wanted.quantity.kind
        match kind:
            case Kind.VOLUME:
                return self._voxels * self._volume.voxel_volume
            case Kind.LONG_AXIS:
                return self._axes[0]
            case Kind.SHORT_AXIS:
                return self._axes[1]
            case Kind.DIAMETER:
                return self._diameter
            case Kind.INTENSITY:
                values = self.intensities
                if wanted.derivation == MEAN:
                    return float(values.mean(dtype=np.float64))
                if wanted.derivation == MINIMUM:
                    return float(values.min())
                return float(values.max() if wanted.derivation == MAXIMUM else values.std(dtype=np.float64))
            case Kind.NUMBER:
                return float(ndimage.label(self._mask, np.ones((3, 3, 3)))[1])
            case _:
                assert_never(kind)

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return np.asarray(self._labels[self._box] == self._number)

    @cached_property
    def intensities(self) -> NDArray[np.number]:
        """The values of the images inside, without padding; may be none."""
        values, counted = self._volume.array[self._box], self._mask.copy()
        for index, plane in enumerate(values):
            padding = self._padding(self._box[0].start + index)
            if padding is not None:
                counted[index] &= (plane < padding[0]) | (plane > padding[1])
        return np.asarray(values[counted])

    @cached_property
    def _axes(self) -> tuple[float, float]:
        """The long axis of the connected region that has the longest in any slice, and its short axis, in mm.

        A segment can be several lesions, or a bent one that a slice cuts twice: what is apart is not spanned.
        """
        steps = _in_plane(self._volume.affine)
        best = (0.0, 0.0)
        seen: set[tuple[int, bytes]] = set()  # a mask with speckles has thousands of regions, and few shapes
        bounds = [_bound(plane, steps) for plane in self._mask]
        for z in np.argsort(bounds)[::-1]:
            if bounds[z] <= best[0]:
                break
            plane = _cropped(self._mask[z])
            regions, count = ndimage.label(plane, np.ones((3, 3)))
            boxes = ndimage.find_objects(regions) if count > 1 else [tuple(map(slice, (0, 0), plane.shape))]
            limits = _diagonals(np.array([[side.stop - side.start for side in box] for box in boxes]), steps)
            for index in np.argsort(limits)[::-1]:
                if limits[index] <= best[0]:
                    break
                region = regions[boxes[index]] == index + 1
                shape = (region.shape[1], region.tobytes())
                if shape not in seen:
                    seen.add(shape)
                    best = max(best, _long_and_short(_outline(region) @ steps))
        return best

    @cached_property
    def _diameter(self) -> float:
        """The largest distance of two points of the surface, in mm.

        No two points are further apart than their distances from the middle together: the outer ones come first.
        """
        ends = _ends(self._mask)
        if np.linalg.matrix_rank(ends - ends[0]) == 3:  # what is flat has no hull
            ends = ends[ConvexHull(ends).vertices]
        points = (ends[:, np.newaxis] + _FACES).reshape(-1, 3) @ self._volume.affine[:3, :3].T
        points -= (points.min(axis=0) + points.max(axis=0)) / 2
        outwards = np.linalg.norm(points, axis=1)
        order = np.argsort(-outwards)
        points, outwards = points[order], outwards[order]
        longest = 0.0
        for at in range(0, len(points), _CHUNK):
            if outwards[at] + outwards[0] <= longest:
                break
            chunk = points[at : at + _CHUNK]
            far_enough = np.searchsorted(-outwards, outwards[at] - longest, side="right")
            longest = max(longest, float(cdist(chunk, points[: min(at + _CHUNK, far_enough)]).max()))
        return longest


def _in_plane(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the matrix, (2, 2), by which an index (y, x) times it is a place in the slice's plane in mm."""
    down, right = affine[:3, 1], affine[:3, 2]
    along = right / np.linalg.norm(right)
    across = down - (down @ along) * along
    across /= np.linalg.norm(across)
    return np.array([[down @ along, down @ across], [right @ along, right @ across]])


def _bound(plane: NDArray[np.bool_], steps: NDArray[np.float64]) -> float:
    """Give a length in mm that no diameter of the plane's voxels exceeds."""
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    if not len(rows):
        return 0.0
    return float(_diagonals(np.array([[rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1]]), steps)[0])


def _diagonals(boxes: NDArray[np.intp], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give a bit more than the diagonals in mm of boxes, shape (n, 2), of so many rows and columns of voxels.

    The bit is for direction cosines, which may miss a right angle (`volume.COSINE_TOLERANCE`).
    """
    return np.asarray(np.linalg.norm(boxes * np.linalg.norm(steps, axis=1), axis=1) * 1.01)


def _cropped(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out the rows and columns around what is set."""
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    return plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _outline(plane: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the convex outline of a plane's voxels.

    Returns:
        Corners (y, x) in the order in which they go round, at the middle of pixels' sides.
    """
    rows = np.flatnonzero(plane.any(axis=1))
    filled = plane[rows]
    first, last = filled.argmax(axis=1), plane.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
    centres = np.column_stack([np.tile(rows, 2), np.concatenate([first, last])])
    points = (centres[:, np.newaxis] + _SIDES).reshape(-1, 2)
    return np.asarray(points[ConvexHull(points).vertices])


def _ends(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give voxels (z, y, x), among them all corners of a mask's convex hull, and not many more.

    They are the first and the last of each row of voxels, less those that lie on or within the line between the ends
    of the two rows beside theirs, on opposite sides.
    """
    shown = mask.any(axis=2)
    found = []
    for turned, ends in ((1, mask.argmax(axis=2)), (-1, mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2))):
        inwards = np.pad(np.where(shown, turned * ends, mask.size).astype(np.int64), 1, constant_values=mask.size)
        kept = shown.copy()
        for step in _NEIGHBOURS:
            beside = [np.roll(inwards, way, axis=(0, 1))[1:-1, 1:-1] for way in (step, tuple(-one for one in step))]
            kept &= beside[0] + beside[1] > 2 * inwards[1:-1, 1:-1]
        z, y = np.nonzero(kept)
        found.append(np.column_stack([z, y, ends[z, y]]))
    return np.vstack(found).astype(np.float64)


def _long_and_short(corners: NDArray[np.float64]) -> tuple[float, float]:
    """Give a convex outline's longest diameter and its longest chord at a right angle to that (RECIST 1.1), in mm.

    Args:
        corners: (n, 2) in mm, in the order in which they go round.
    """
    distances = cdist(corners, corners)
    start, end = np.unravel_index(int(distances.argmax()), distances.shape)
    length = float(distances[start, end])
    corners = np.roll(corners, -int(start), axis=0) - corners[start]
    end = (end - start) % len(corners)
    direction = corners[end] / length
    along, across = corners @ direction, corners @ np.array([-direction[1], direction[0]])
    there = np.interp(along, along[: end + 1], across[: end + 1])
    back = np.interp(along, np.append(along[end:], 0.0)[::-1], np.append(across[end:], 0.0)[::-1])
    return length, float(np.abs(there - back).max())
