"""Findings: what a model says of its input. Arrays and codes; no network, no DICOM objects."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code


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
        method: how it was measured, where a code exists.
        segment: the segment that was measured.
    """

    name: Code
    value: float
    unit: Code
    segment: Segment
    method: Code | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """All that one run of a model says.

    Attributes:
        layers: label maps; overlapping structures lie in different layers.
        measurements: numbers, each of a segment.
        outcome: findings, or looked for and not there.
        remarks: sentences that a reader must see with the result, such as 'outside the validated input: ...'.
    """

    layers: tuple[Layer, ...]
    measurements: tuple[Measurement, ...]
    outcome: Outcome
    remarks: tuple[str, ...] = ()
