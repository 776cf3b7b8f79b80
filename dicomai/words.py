"""Findings in words and numbers as people write them, for pictures and pages; what is exact stands in the report."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.sr.coding import Code

from dicomai.findings import Detection, Findings, Measurement

Color = tuple[int, int, int]

DETECTED = (255, 80, 255)
"""The colour around what was detected without a mask."""

_UNITS = {"1": "", "[hnsf'U]": "HU"}  # UCUM codes that people write in another way
_AXES = (("R", "L"), ("A", "P"), ("F", "H"))  # negative and positive direction of x, y, z in LPS (PS3.3 C.7.6.1.1.1)


def quantity(one: Measurement) -> str:
    """Name what was measured, such as 'Volume', or 'Attenuation Coefficient, Mean'."""
    return ", ".join(code.meaning for code in (one.name, one.derivation) if code)


def value(one: Measurement) -> str:
    """Write a measurement's value and unit as people do, to three digits or whole numbers, such as '1292 cm3'."""
    return amount(one.value, one.unit)


def amount(number: float, unit: Code) -> str:
    """Write a number and its unit as `value` does."""
    digits = f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
    return f"{digits} {_UNITS.get(unit.value, unit.value)}".strip()


@dataclass(frozen=True, slots=True)
class Statement:
    """What findings say of no segment, in words.

    Attributes:
        kind: 'Classification', 'Score' or 'Detection'.
        about: what it is about, such as 'Nodule, Lung'.
        value: such as 'Present, probability 0.93'.
        method: how it was made; empty where nothing is said of it.
        color: of what is drawn, where something is.
    """

    kind: str
    about: str
    value: str
    method: str = ""
    color: Color | None = None


def statements(findings: Findings) -> Iterator[Statement]:
    """Say in words what was classified, scored and detected."""
    for evaluation in findings.evaluations:
        answer = f"{evaluation.answer.meaning}{_probability(evaluation.probability)}"
        yield Statement("Classification", named(evaluation.name, evaluation.site), answer)
    for score in findings.scores:
        method = score.method.meaning if score.method else ""
        yield Statement("Score", named(score.name, score.site), amount(score.value, score.unit), method)
    for one in findings.detections:
        yield Statement("Detection", named(one.type, one.site), _whereabouts(one), color=DETECTED)


def named(name: Code, site: Code | None) -> str:
    """Name what is said of no segment, such as 'Nodule, Lung'."""
    return ", ".join(code.meaning for code in (name, site) if code)


def _probability(probability: float | None) -> str:
    if probability is None:
        return ""
    if 0.99 < probability < 1:
        return ", probability > 0.99"  # rounded it would be certain
    return ", probability < 0.01" if 0 < probability < 0.01 else f", probability {probability:.2g}"


def _whereabouts(one: Detection) -> str:
    """Say where a detection lies and how large it is, such as 'at L 12.0, P 3.5, H 60.0 mm, 8.0 x 6.0 x 6.0 mm'."""
    center = zip(_AXES, one.region.center, strict=True)
    at = ", ".join(f"{names[int(value > 0)]} {abs(value):.1f}" for names, value in center)
    size = " x ".join(f"{2 * np.linalg.norm(axis):.1f}" for axis in one.region.semi_axes)
    return f"at {at} mm{f', {size} mm' if size else ''}{_probability(one.probability)}"
