"""Findings: what a model says of its input. Arrays and codes; no network, no DICOM objects."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from dicomai.errors import InferenceError

_FEW_RUNS = 16  # voxels to a run: with shorter ones counting voxels is faster than counting runs


class Outcome(StrEnum):
    """What the analysis came to (after CID 6047)."""

    FINDINGS = "findings"  # something was segmented, measured or detected
    NEGATIVE = "negative"  # it was looked for and not there


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a label map: its number there, and what it is in codes (PS3.3 C.8.20.2).

    Attributes:
        number: the value in its layer's label map, from 1.
        label: Segment Label (0062,0005), at most 64 characters.
        category: Segmented Property Category (CID 7150), such as (123037004, SCT, Body structure).
        type: Segmented Property Type, such as (128319008, SCT, Intracranial structure).
        finding_site: what measurements of this segment are measurements of, for the SR.
        color: recommended display colour, sRGB, 0..255 each.
    """

    number: int
    label: str
    category: Code
    type: Code
    finding_site: Code
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """An integer label map on the source grid; its segments do not overlap.

    Attributes:
        labels: shape (z, y, x), 0 where there is no segment.
        segments: every segment that the model looks for, also those without a voxel.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16] = field(repr=False)
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its name, unit and method.

    Attributes:
        name: such as (118565006, SCT, Volume).
        value: in `unit`.
        unit: UCUM code from CID 7462 or alike, such as (cm3, UCUM, cubic centimeter).
        segment: the segment that was measured.
        method: how it was measured, where a code exists.
        derivation: how an intensity was made of many (CID 7464), such as (373098007, SCT, Mean).
    """

    name: Code
    value: float
    unit: Code
    segment: Segment
    method: Code | None = None
    derivation: Code | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number: no report can hold it, and no reader must see it.

        Raises:
            InferenceError: the value is not a number, or infinite.
        """
        if not math.isfinite(self.value):
            raise InferenceError(
                f"The {self.name.meaning} of {self.segment.label} is {self.value}, which is no number: correct how the"
                " bundle measures it, or leave it out where it cannot be measured."
            )


@dataclass(frozen=True, slots=True)
class Probability:
    """How probable it is, voxel by voxel, that a segment is there; the label map says where it is held to be.

    Attributes:
        layer: index of the segment's layer in the findings.
        segment: what it is.
        values: shape (z, y, x), 0 to 1.
    """

    layer: int
    segment: Segment
    values: NDArray[np.float32] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse values that are no probabilities.

        Raises:
            InferenceError: one is not from 0 to 1.
        """
        low, high = float(self.values.min(initial=0)), float(self.values.max(initial=0))
        if not 0 <= low <= high <= 1:  # of what is no number, the same
            raise InferenceError(
                f"The probabilities of {self.segment.label} are {low:g} to {high:g}: a bundle gives them from 0 to 1."
            )


@dataclass(frozen=True, slots=True)
class Saliency:
    """How much each voxel of the source grid counted for the answer, or another quantity of each voxel.

    Attributes:
        values: shape (z, y, x), finite, in `unit`.
        quantity: what the values are, as a code.
        unit: UCUM code, such as (1, UCUM, no units).
        label: the same for people, at most 16 characters, such as 'Saliency'.
    """

    values: NDArray[np.float32] = field(repr=False)
    quantity: Code
    unit: Code
    label: str

    def __post_init__(self) -> None:
        """Refuse texts that do not fit into every object: they bear the patient's character set.

        Raises:
            InferenceError: a text is not in ASCII, or the label is empty or longer than 16 characters.
        """
        texts = (self.label, *self.quantity[:3], *self.unit[:3])
        if not 1 <= len(self.label) <= 16 or not all(map(str.isascii, texts)):
            raise InferenceError(
                f"The saliency map is labelled '{self.label}', as '{self.quantity.meaning}' in '{self.unit.meaning}':"
                " a bundle gives these in ASCII, and the label in 1 to 16 characters."
            )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A question and its answer in codes, such as how an image is classified.

    Attributes:
        name: what was asked, such as (233604007, SCT, Pneumonia).
        answer: such as (52101004, SCT, Present).
        site: where, if it is about a part of the images.
        probability: that the answer is right, 0 to 1, as the model has it; None where it gives none.
    """

    name: Code
    answer: Code
    site: Code | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        """Refuse a probability that is none.

        Raises:
            InferenceError: it is not from 0 to 1.
        """
        _check_probability(self.probability, self.name)


@dataclass(frozen=True, slots=True)
class Score:
    """A number that is about no segment, such as a calcium score.

    Attributes:
        name: such as (112058, DCM, Calcium score).
        value: in `unit`.
        unit: UCUM code.
        site: where, if it is about a part of the images.
        method: how it was made, where a code exists.
    """

    name: Code
    value: float
    unit: Code
    site: Code | None = None
    method: Code | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number.

        Raises:
            InferenceError: the value is not a number, or infinite.
        """
        if not math.isfinite(self.value):
            raise InferenceError(
                f"The {self.name.meaning} is {self.value}, which is no number: correct how the bundle makes it."
            )


class Shape(StrEnum):
    """What a region looks like."""

    POINT = "point"
    BOX = "box"
    ELLIPSOID = "ellipsoid"


Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Region:
    """Where a detection lies, in the Frame of Reference of the images.

    Attributes:
        shape: what it looks like.
        center: LPS, mm.
        semi_axes: from the centre to the middle of three faces, or along three half axes, LPS, mm; at right angles to
            each other. None for a point.
    """

    shape: Shape
    center: Vector
    semi_axes: tuple[Vector, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no such shape.

        Raises:
            InferenceError: a number is none, an axis is missing or has no length, or they are not at right angles.
        """
        axes = np.asarray(self.semi_axes, dtype=np.float64).reshape(-1, 3)
        lengths = np.linalg.norm(axes, axis=1)
        if not (np.isfinite(self.center).all() and np.isfinite(axes).all()):
            raise InferenceError(f"A {self.shape} that was detected lies at what are no numbers.")
        if len(axes) != (0 if self.shape is Shape.POINT else 3) or not lengths.all():
            raise InferenceError(
                f"A {self.shape} that was detected has {np.count_nonzero(lengths)} axes with a length."
            )
        angles = axes / lengths[:, np.newaxis] if len(axes) else axes
        if not np.allclose(angles @ angles.T, np.eye(len(axes)), atol=1e-3):
            raise InferenceError(f"A {self.shape} that was detected has axes that are not at right angles.")


@dataclass(frozen=True, slots=True)
class Detection:
    """Something that was found at a place, without a mask.

    Attributes:
        type: what, such as (27925004, SCT, Nodule).
        category: of what kind that is (CID 7150), such as (49755003, SCT, Morphologically Abnormal Structure).
        site: in which part of the body.
        region: where.
        probability: that it is there, 0 to 1, as the model has it; None where it gives none.
    """

    type: Code
    category: Code
    site: Code
    region: Region
    probability: float | None = None

    def __post_init__(self) -> None:
        """Refuse a probability that is none.

        Raises:
            InferenceError: it is not from 0 to 1.
        """
        _check_probability(self.probability, self.type)


def _check_probability(probability: float | None, name: Code) -> None:
    if probability is not None and not 0 <= probability <= 1:
        raise InferenceError(
            f"The probability of {name.meaning} is {probability:g}: a bundle gives probabilities from 0 to 1."
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one run of a model says.

    Attributes:
        layers: label maps; overlapping structures lie in different layers.
        measurements: numbers, each of a segment.
        outcome: findings, or looked for and not there.
        remarks: sentences that a reader must see with the result, such as 'outside the validated input: ...'.
        evaluations: questions and their answers.
        scores: numbers that are about no segment.
        detections: what was found at a place, without a mask.
        saliency: what the answer rests on, where the engine says so.
        probabilities: maps of how probable segments are, where the bundle keeps them.
    """

    layers: tuple[Layer, ...]
    measurements: tuple[Measurement, ...]
    outcome: Outcome
    remarks: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    scores: tuple[Score, ...] = ()
    detections: tuple[Detection, ...] = ()
    saliency: Saliency | None = None
    probabilities: tuple[Probability, ...] = ()


@dataclass(frozen=True, slots=True)
class NumberedSegment:
    """A segment that has voxels, with its number in the result.

    Attributes:
        number: Segment Number (0062,0004) in the segmentation object, from 1 without a gap.
        layer: index of its layer in the findings.
        segment: what it is; `segment.number` is its value in the layer's label map.
        voxels: how many voxels it has.
    """

    number: int
    layer: int
    segment: Segment
    voxels: int


def found_segments(findings: Findings) -> tuple[NumberedSegment, ...]:
    """Number the segments that have voxels: layer by layer, by their number in the label map.

    Raises:
        InferenceError: a label map has a value that no segment describes.
    """
    found: list[NumberedSegment] = []
    for index, layer in enumerate(findings.layers):
        sizes = _sizes(layer)
        for segment in sorted(layer.segments, key=lambda segment: segment.number):
            if segment.number < len(sizes) and sizes[segment.number]:
                found.append(NumberedSegment(len(found) + 1, index, segment, int(sizes[segment.number])))
                sizes[segment.number] = 0
        if sizes[1:].any():
            value = int(np.flatnonzero(sizes[1:])[0]) + 1
            raise InferenceError(f"The label map has the value {value}, which no segment of the bundle describes.")
    return tuple(found)


def missing_segments(
    findings: Findings, found: Sequence[NumberedSegment] | None = None
) -> Iterator[tuple[int, Segment]]:
    """Give the segments that were looked for and have no voxel, each with the index of its layer.

    Args:
        findings: what the model said.
        found: what `found_segments` gave of it, where that is at hand: voxels are then not counted again.
    """
    numbered = found_segments(findings) if found is None else found
    there = {(one.layer, one.segment.number) for one in numbered}
    for index, layer in enumerate(findings.layers):
        for segment in layer.segments:
            if (index, segment.number) not in there:
                yield index, segment


def areas(layer: Layer) -> Iterator[NDArray[np.int64]]:
    """Count the voxels of each value, slice by slice."""
    for counted, _, _ in extents(layer):
        yield counted


def extents(layer: Layer) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Tell of each value, slice by slice, how many voxels it has and between which it lies.

    Returns:
        For each slice three arrays by value: the number of voxels; the index in the flattened slice from which on
        they lie, and the one before which they end, both 0 for a value that is not there.
    """
    values = int(layer.labels.max(initial=0)) + 1
    for plane in layer.labels:
        flat = plane.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        starts, stops = np.zeros(values, np.int64), np.zeros(values, np.int64)
        if len(changes) > flat.size // _FEW_RUNS:
            counted = np.bincount(flat, minlength=values)
            stops[counted > 0] = flat.size
        else:
            begins, ends = np.concatenate([[0], changes]), np.append(changes, flat.size)
            shown = flat[begins]
            counted = np.bincount(shown, weights=ends - begins, minlength=values).astype(np.int64)
            starts[shown[::-1]], stops[shown] = begins[::-1], ends  # of indices that repeat the last one counts
        yield counted, starts, stops


def _sizes(layer: Layer) -> NDArray[np.int64]:
    return sum(areas(layer), start=np.zeros(1, dtype=np.int64))
