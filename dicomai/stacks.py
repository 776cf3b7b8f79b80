"""Series -> stacks: frames that differ in more than their place are told apart before anything is judged missing.

A series may hold several echoes, b-values, time points, kinds of image and orientations. Split by them, what is left
in a stack differs only in position, so that a gap there is a slice missing and a repeated position a duplicate.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from dicomai.errors import UnreadableError
from dicomai.routing import values
from dicomai.study import Frame, Instance, Series, Stack, is_image

ORIENTATION_TOLERANCE = 1e-2
"""Slices whose rows or columns differ by less than this angle, in radians (0.6 degrees), have one orientation.

The cosines of one acquisition differ in their last digits only, by less than 1e-3; slabs that a person has planned at
two angles differ by a degree or more. `volume.load` asks for more, because there a voxel's place is at stake.
"""

ALIKE = 1e-3
"""Echo times, or b-values, whose neighbours differ by less than this fraction are one: scanners let them jitter."""

_MOST_FRAMES = 100_000
"""Frames of one instance; a count beyond that is a broken header, and would fill the memory before a pixel is read."""

_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
)


def split(series: Series) -> tuple[Stack, ...]:
    """Split a series into stacks by ImageType, echo, b-value, temporal position, stack ID and orientation.

    Enhanced multi-frame instances are split frame by frame, from their functional groups (PS3.3 C.7.6.16). What is
    no image is left out; an image without a position (CR, US, secondary capture) makes a stack that has no
    orientation. The size in pixels is no reason to split: within a stack it has to be one, or there is no volume.

    Returns:
        Stacks ordered by those values, each with a key made of them, such as
        `type=ORIGINAL/PRIMARY/M; echo=2; te=90; orientation=1,0,0,0,1,0`. Keys and order do not depend on the order
        of the instances. Frames within a stack are ordered by SOPInstanceUID and frame number.

    Raises:
        UnreadableError: an attribute that tells stacks apart has a value that is no number.
    """
    images = sorted((i for i in series.instances if is_image(i.header)), key=lambda i: i.sop_instance_uid)
    groups: dict[tuple[object, ...], list[_Traits]] = {}
    for trait in [_traits(frame) for image in images for frame in frames(image)]:
        groups.setdefault(trait.exact, []).append(trait)
    pieces = [piece for group in groups.values() for piece in _pieces(group)]
    keyed = sorted(((_rank(piece), _key(piece), piece) for piece in pieces), key=lambda one: one[:2])
    return tuple(Stack(key, tuple(trait.frame for trait in piece)) for _, key, piece in keyed)


def frames(instance: Instance) -> tuple[Frame, ...]:
    """Give the frames of an instance: one without a number, or as many as a multi-frame instance has.

    Raises:
        UnreadableError: NumberOfFrames is no number or cannot be, or the per-frame functional groups are not as many.
    """
    count = number(instance.header, "NumberOfFrames") or 1
    if not 1 <= count <= _MOST_FRAMES:
        raise UnreadableError(
            f"Instance {instance.sop_instance_uid} says that it has {count:.0f} frames, where 1 to {_MOST_FRAMES} can"
            " be: ask the sender for a new copy."
        )
    groups = _sequence(instance.header, "PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != count:
        raise UnreadableError(
            f"Instance {instance.sop_instance_uid} has {count:g} frames but functional groups for {len(groups)}:"
            " ask the sender for a complete copy."
        )
    if count == 1 and "SharedFunctionalGroupsSequence" not in instance.header and not groups:
        return (Frame(instance),)
    return tuple(Frame(instance, index + 1) for index in range(int(count)))


def attributes(frame: Frame, macro: str) -> Dataset:
    """Give the data set that holds a functional group macro's attributes for one frame.

    Args:
        frame: of a single-frame or of a multi-frame instance.
        macro: the macro's sequence, such as 'PlanePositionSequence' (PS3.3 C.7.6.16.2).

    Returns:
        The item for this frame, or else the one that all frames share. Where there is neither, as in every
        single-frame instance, the instance's own attributes, because that is where they lie then.
    """
    header = frame.instance.header
    if frame.number is None:
        return header
    groups = (
        _sequence(header, "PerFrameFunctionalGroupsSequence")[frame.number - 1 : frame.number],
        _sequence(header, "SharedFunctionalGroupsSequence")[:1],
    )
    for group in groups:
        for item in group:
            found = _sequence(item, macro)
            if found:
                return found[0]
    return header


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Give the values of an attribute as numbers; none where it is missing or empty.

    Raises:
        UnreadableError: a value is no number, or not a finite one.
    """
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return ()
        found = tuple(float(v) for v in (value if isinstance(value, MultiValue | list | tuple) else (value,)))
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        raise UnreadableError(f"{keyword} has a value that is no number: ask the sender for a new copy.") from error
    if not all(map(math.isfinite, found)):
        raise UnreadableError(f"{keyword} has a value that is not finite: ask the sender for a new copy.")
    return found


def number(ds: Dataset, keyword: str) -> float | None:
    """Give the first value of an attribute as a number, None where it is missing or empty.

    Raises:
        UnreadableError: a value is no number, or not a finite one.
    """
    return next(iter(numbers(ds, keyword)), None)


def angle(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Give the angle between two vectors, in radians; exact also where it is small, as an arc cosine is not."""
    return float(np.arctan2(np.linalg.norm(np.cross(one, other)), one @ other))


@dataclass(frozen=True, slots=True)
class _Traits:
    """What tells a frame's stack: every value as the image gives it."""

    frame: Frame
    type: tuple[str, ...]
    echo: str
    echo_time: float | None
    b_value: float | None
    time: str
    stack_id: str
    orientation: tuple[float, ...] | None

    @property
    def exact(self) -> tuple[object, ...]:
        """The values in which the frames of a stack agree to the letter."""
        measured = (self.echo_time is None, self.b_value is None, self.orientation is None)
        return (self.type, self.echo, self.time, self.stack_id, *measured)


def _traits(frame: Frame) -> _Traits:
    echo = attributes(frame, "MREchoSequence")
    content = attributes(frame, "FrameContentSequence")
    orientation = numbers(attributes(frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
    echo_time = number(echo, "EffectiveEchoTime")
    return _Traits(
        frame=frame,
        type=_type(frame),
        echo="/".join(f"{value:g}" for value in numbers(echo, "EchoNumbers")),
        echo_time=number(echo, "EchoTime") if echo_time is None else echo_time,
        b_value=number(attributes(frame, "MRDiffusionSequence"), "DiffusionBValue"),
        time=_index(content, "TemporalPositionIndex") or _index(content, "TemporalPositionIdentifier"),
        stack_id="/".join(values(content, "StackID")),
        orientation=orientation if len(orientation) == 6 else None,
    )


def _index(ds: Dataset, keyword: str) -> str:
    value = number(ds, keyword)
    return "" if value is None else f"{value:g}"


def _type(frame: Frame) -> tuple[str, ...]:
    """Give FrameType with ComplexImageComponent, which keeps magnitude from phase, or else ImageType."""
    for macro in _FRAME_TYPES:
        found = attributes(frame, macro)
        if "FrameType" in found:
            return values(found, "FrameType") + values(found, "ComplexImageComponent")
    return values(frame.instance.header, "ImageType")


def _sequence(ds: Dataset, keyword: str) -> Sequence[Dataset]:
    try:
        return ds.get(keyword) or ()
    except (ValueError, TypeError, KeyError, EOFError, NotImplementedError) as error:
        raise UnreadableError(f"{keyword} cannot be decoded: ask the sender for a new copy.") from error


def _pieces(group: list[_Traits]) -> list[list[_Traits]]:
    """Split a group by echo time, b-value and orientation until nothing more comes apart.

    Because no piece can be split any further, the images of one stack alone give the same stack again, whatever
    else was in the series: a stack that was planned is found again by its key.
    """
    for labels in (
        _levels([trait.echo_time for trait in group]),
        _levels([trait.b_value for trait in group]),
        _orientations([trait.orientation for trait in group]),
    ):
        if max(labels) > 0:
            parts = [[t for t, at in zip(group, labels, strict=True) if at == n] for n in range(max(labels) + 1)]
            return [piece for part in parts for piece in _pieces(part)]
    return [group]


def _levels(found: Sequence[float | None]) -> list[int]:
    """Number the clusters of numbers, each of neighbours that are nearly equal; all are missing, or none."""
    distinct = sorted({value for value in found if value is not None})
    level_of: dict[float | None, int] = {None: 0}
    for value, previous in zip(distinct, [None, *distinct], strict=False):
        apart = previous is not None and not math.isclose(previous, value, rel_tol=ALIKE)
        level_of[value] = level_of[previous] + apart
    return [level_of[value] for value in found]


def _orientations(found: Sequence[tuple[float, ...] | None]) -> list[int]:
    """Number the clusters of orientations; all are missing, or none.

    Clusters by angle and single linkage, so that neither the order of the images nor the place of a rounding step
    in a cosine decides what belongs together.
    """
    distinct = sorted({orientation for orientation in found if orientation is not None})
    if len(distinct) < 2:
        return [0] * len(found)
    cosines = np.asarray(distinct)
    apart = np.maximum(_chords(cosines[:, :3]), _chords(cosines[:, 3:]))  # as good as the angles at this size
    _, labels = connected_components(apart < ORIENTATION_TOLERANCE, directed=False)
    label = dict(zip(distinct, labels.tolist(), strict=True))
    return [label[orientation] for orientation in found if orientation is not None]


def _chords(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the distance between the ends of every two vectors, each brought to unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(cdist(unit, unit), dtype=np.float64)


def _rank(piece: Sequence[_Traits]) -> tuple[object, ...]:
    """Order stacks as a person would: by type, then from small to large."""
    first = piece[0]
    return (
        first.type,
        (len(first.echo), first.echo),
        _lowest(trait.echo_time for trait in piece),
        _lowest(trait.b_value for trait in piece),
        (len(first.time), first.time),
        (len(first.stack_id), first.stack_id),
    )


def _key(piece: Sequence[_Traits]) -> str:
    """Name a stack by its values; of those that jitter, the lowest.

    Stacks that differ in nothing else have echo times or b-values that differ in six digits, and cosines that
    differ in three, so that no two stacks of a series have one key.
    """
    first = piece[0]
    parts = {
        "type": "/".join(first.type),
        "echo": first.echo,
        "te": "" if first.echo_time is None else f"{_lowest(trait.echo_time for trait in piece):g}",
        "b": "" if first.b_value is None else f"{_lowest(trait.b_value for trait in piece):g}",
        "time": first.time,
        "stack": first.stack_id,
        "orientation": "",
    }
    if first.orientation is not None:
        lowest = min(trait.orientation for trait in piece if trait.orientation is not None)
        parts["orientation"] = ",".join(f"{round(cosine, 3) + 0.0:g}" for cosine in lowest)  # + 0.0: no '-0'
    return "; ".join(f"{name}={value}" for name, value in parts.items() if value) or "plain"


def _lowest(found: Iterable[float | None]) -> float:
    return min((value for value in found if value is not None), default=-math.inf)
