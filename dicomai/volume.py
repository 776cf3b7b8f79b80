"""Instances -> Volume: array (z, y, x), 4x4 affine in mm, LPS.

Slices are sorted by where they lie, never by InstanceNumber or file name, and spacing is measured between positions,
never taken from SpacingBetweenSlices. A stack that does not make a volume is refused in one sentence that names the
numbers. What geometry cannot show is not judged: a slice missing at either end leaves no gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomai import pixels
from dicomai.errors import GeometryError, NotAcceptedError
from dicomai.stacks import angle, attributes, number, numbers
from dicomai.study import Frame, Stack

LARGEST_TILT = 1.0
"""Degrees between the direction from slice to slice and the slice normal; more is a tilted gantry.

Positions are rounded and tables sag, which gives tenths of a degree; gantries are tilted by whole degrees.
"""

ORIENTATION_TOLERANCE = 1e-3
"""Radians by which slices of one volume may differ in orientation: 0.1 mm at the end of a row of 100 mm."""

COSINE_TOLERANCE = 5e-3
"""By how much direction cosines may miss unit length and a right angle: three digits are the fewest in use."""

_IN_PLANE_TOLERANCE = 1e-3  # fraction by which PixelSpacing may differ from slice to slice: its rounding
_SAME_PLANE = 0.01  # slices nearer to each other than this fraction of the mean spacing lie in one plane
_GAP = 1.5  # from this many median spacings on, a slice is missing; below, the spacing is uneven


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bundle takes as a volume.

    Attributes:
        min_slices: the fewest slices.
        spacing_tolerance: how far the distance between two slices may be off the median, as a fraction of it.
        tilted: whether slices may be sheared against each other (a tilted gantry).
        lossy: whether images may have been compressed with loss.
    """

    min_slices: int = 1
    spacing_tolerance: float = 0.02
    tilted: bool = False
    lossy: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A stack as an array, and where it lies.

    Attributes:
        array: shape (z, y, x); z ascends along the slice normal (the cross product of a row's and a column's
            direction), y runs down a column, x along a row, as stored. In HU or other rescaled units, or in stored
            units where there is no rescaling: integers where slope and intercept allow, otherwise float32.
            MONOCHROME1 is not inverted, and Pixel Padding Value is left as it is.
        affine: shape (4, 4), float64; maps an index (z, y, x, 1) to LPS in mm, at the voxel's centre. Its first three
            columns are the steps along z, y and x; the steps along x, y and z, in this order, are right-handed. Its
            z step is the mean from the first slice to the last.
        frames: the source of each slice, in the order of z.
        lossy: whether any source was compressed with loss, now or in its past.
    """

    array: NDArray[Any] = field(repr=False)
    affine: NDArray[np.float64]
    frames: tuple[Frame, ...] = field(repr=False)
    lossy: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (z, y, x)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels' centres along (z, y, x), in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in mm3, right for a sheared stack too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def load(stack: Stack, limits: Limits, threads: int = 4) -> Volume:
    """Read a stack as a volume.

    Everything that the headers can tell is judged before any pixel data is read.

    Args:
        stack: single-frame or enhanced multi-frame, in any order.
        limits: what the bundle takes.
        threads: how many instances are read at a time.

    Raises:
        GeometryError: slices are missing, doubled, unevenly spaced, tilted, or differ in size or orientation.
        NotAcceptedError: colour, or lossy compression that the bundle does not take.
        UnreadableError: pixel data or attributes cannot be decoded.
        StoreError: the storage did not give an instance.
    """
    if len(stack.frames) < max(1, limits.min_slices):
        raise GeometryError(
            f"The stack has too few slices: {len(stack.frames)} where at least {max(1, limits.min_slices)} are"
            " needed; send the whole series."
        )
    for instance in stack.instances:
        pixels.check(instance)
    lossy = any(pixels.is_lossy(instance.header) for instance in stack.instances)
    if lossy and not limits.lossy:
        raise NotAcceptedError(
            "The images were compressed with loss, which this model does not take: send them as the scanner made"
            " them, or use a model that accepts lossy compression."
        )
    slices, affine = _arrange([_slice(frame) for frame in stack.frames], limits)
    ordered = tuple(one.frame for one in slices)
    return Volume(array=pixels.decode(ordered, threads), affine=affine, frames=ordered, lossy=lossy)


# Geometry


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """Where one frame lies, and how large it is. Lengths in mm, LPS; pairs are (y, x)."""

    frame: Frame
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    size: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        cross = np.cross(self.row, self.column)
        return np.asarray(cross / np.linalg.norm(cross), dtype=np.float64)

    @property
    def name(self) -> str:
        """What a person finds it by in a viewer."""
        if self.frame.number is not None:
            return f"frame {self.frame.number}"
        given = self.frame.instance.header.get("InstanceNumber")
        return "no InstanceNumber" if given is None else f"InstanceNumber {given}"


def _slice(frame: Frame) -> _Slice:
    header = frame.instance.header
    position = _exactly(3, attributes(frame, "PlanePositionSequence"), "ImagePositionPatient", frame)
    cosines = _exactly(6, attributes(frame, "PlaneOrientationSequence"), "ImageOrientationPatient", frame)
    spacing = _exactly(2, attributes(frame, "PixelMeasuresSequence"), "PixelSpacing", frame)
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > COSINE_TOLERANCE:
        raise GeometryError(
            f"ImageOrientationPatient of instance {frame.instance.sop_instance_uid} is {_list(cosines)}, which are not"
            " two perpendicular unit vectors: have the series sent again or reconstructed."
        )
    if min(spacing) <= 0:
        raise GeometryError(
            f"PixelSpacing of instance {frame.instance.sop_instance_uid} is {_list(spacing)}, and must be above 0 mm."
        )
    return _Slice(
        frame=frame,
        position=np.asarray(position),
        row=row / lengths[0],
        column=column / lengths[1],
        spacing=(spacing[0], spacing[1]),
        size=(int(header.Rows), int(header.Columns)),
    )


def _exactly(count: int, ds: Dataset, keyword: str, frame: Frame) -> tuple[float, ...]:
    found = numbers(ds, keyword)
    if len(found) != count:
        which = "" if frame.number is None else f", frame {frame.number},"
        raise GeometryError(
            f"Instance {frame.instance.sop_instance_uid}{which} has {len(found) or 'no'} values in {keyword} where"
            f" {count} are needed: images without a place in the patient make no volume."
        )
    return found


def _arrange(slices: list[_Slice], limits: Limits) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Sort slices along their normal, check that they make a grid, and give it as an affine."""
    _check_alike(slices)
    normal = slices[0].normal
    slices = sorted(slices, key=lambda one: (float(one.position @ normal), one.frame.instance.sop_instance_uid))
    first, last = slices[0], slices[-1]
    if len(slices) == 1:
        step = normal * _thickness(first)
    else:
        _check_spacing(slices, normal, limits.spacing_tolerance)
        step = (last.position - first.position) / (len(slices) - 1)
        _check_direction(slices, step, normal, limits)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.column * first.spacing[0]
    affine[:3, 2] = first.row * first.spacing[1]
    affine[:3, 3] = first.position
    return slices, affine


def _check_alike(slices: Sequence[_Slice]) -> None:
    """Refuse slices that differ in frame of reference, size, orientation or pixel spacing."""
    references = {str(one.frame.instance.header.get("FrameOfReferenceUID") or "") for one in slices}
    if len(references) > 1:
        raise GeometryError(
            f"The slices have {len(references)} different FrameOfReferenceUIDs, so that their positions cannot be"
            " compared: send each acquisition as a series of its own."
        )
    first = slices[0]
    for one in slices:
        if one.size != first.size:
            raise GeometryError(
                f"The slices differ in size: {first.size[1]} x {first.size[0]} pixels ({first.name}) and"
                f" {one.size[1]} x {one.size[0]} ({one.name}); a volume needs one size."
            )
        apart = max(angle(one.row, first.row), angle(one.column, first.column))
        if apart > ORIENTATION_TOLERANCE:
            raise GeometryError(
                f"The slices differ in orientation: {one.name} is turned by {np.degrees(apart):.2f} degrees against"
                f" {first.name}; a volume needs parallel slices."
            )
        if not np.allclose(one.spacing, first.spacing, rtol=_IN_PLANE_TOLERANCE, atol=0):
            raise GeometryError(
                f"The slices differ in PixelSpacing: {_list(first.spacing)} mm ({first.name}) and"
                f" {_list(one.spacing)} mm ({one.name}); a volume needs one."
            )


def _check_spacing(slices: Sequence[_Slice], normal: NDArray[np.float64], tolerance: float) -> None:
    """Refuse duplicate, missing and unevenly spaced slices; distances are along the normal."""
    places = [float(one.position @ normal) for one in slices]
    gaps = [after - before for before, after in pairwise(places)]
    median = median_low(gaps)
    named = [f"{place:.2f} mm ({one.name})" for place, one in zip(places, slices, strict=True)]
    along = "along the slice normal"
    doubled = [i for i, gap in enumerate(gaps) if gap <= _SAME_PLANE * (places[-1] - places[0]) / len(gaps)]
    if doubled:
        raise GeometryError(
            f"Two slices lie at the same position {along}: {named[doubled[0]]} and {named[doubled[0] + 1]}"
            f"{_more(doubled)}; send each slice once, and each acquisition as a series of its own."
        )
    missing = [i for i, gap in enumerate(gaps) if gap >= _GAP * median]
    if missing:
        at = missing[0]
        raise GeometryError(
            f"A slice is missing between {named[at]} and {named[at + 1]} {along}: spacing {gaps[at]:.2f} mm where the"
            f" median is {median:.2f} mm{_more(missing)}; send the whole series again."
        )
    uneven = [i for i, gap in enumerate(gaps) if abs(gap - median) > tolerance * median]
    if uneven:
        at = max(uneven, key=lambda i: abs(gaps[i] - median))
        raise GeometryError(
            f"The slices are unevenly spaced: {gaps[at]:.2f} mm between {named[at]} and {named[at + 1]} {along} where"
            f" the median is {median:.2f} mm and {tolerance:.1%} of it are allowed; send an evenly spaced series."
        )


def _check_direction(
    slices: Sequence[_Slice], step: NDArray[np.float64], normal: NDArray[np.float64], limits: Limits
) -> None:
    """Refuse a tilted gantry, and slices that lie off the straight line from the first to the last."""
    tilt = float(np.degrees(angle(step, normal)))
    if tilt > LARGEST_TILT and not limits.tilted:
        raise GeometryError(
            f"The slices are tilted: from slice to slice they move {tilt:.1f} degrees off their normal where"
            f" {LARGEST_TILT:.1f} is allowed; send a reformatted series, or use a model that takes a tilted gantry."
        )
    off = np.asarray([one.position for one in slices]) - slices[0].position
    off -= np.arange(len(slices))[:, None] * step
    along = np.abs(off @ normal)
    aside = np.linalg.norm(off - (off @ normal)[:, None] * normal, axis=1)
    # Small differences that add up: no pair of neighbours shows them, yet the grid would misplace the middle.
    for what, distances, allowed in (
        ("along the normal", along, float(step @ normal) / 2),
        ("beside it", aside, min(slices[0].spacing) / 2),
    ):
        worst = int(np.argmax(distances))
        if distances[worst] > allowed:
            raise GeometryError(
                f"The slices are unevenly spaced: {slices[worst].name} lies {distances[worst]:.2f} mm {what} from its"
                f" place on an even line from the first slice to the last, where {allowed:.2f} mm are allowed."
            )


def _thickness(only: _Slice) -> float:
    """Give the extent of a slice that stands alone, which no second position can tell."""
    thickness = number(attributes(only.frame, "PixelMeasuresSequence"), "SliceThickness")
    if thickness is None or thickness <= 0:
        raise GeometryError(
            f"Instance {only.frame.instance.sop_instance_uid} is the only slice and has no SliceThickness, so that its"
            " voxels have no volume: send the whole series."
        )
    return thickness


def _more(found: Sequence[int]) -> str:
    return f" (and so in {len(found) - 1} more places)" if len(found) > 1 else ""


def _list(found: Sequence[float]) -> str:
    return "\\".join(f"{value:g}" for value in found)
