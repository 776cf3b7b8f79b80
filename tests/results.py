"""Findings, sources and provenance made for tests of result objects."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.findings import Findings, Layer, Measurement, Outcome, Segment
from dicomai.outputs import Algorithm, Provenance, Sources
from dicomai.stacks import attributes, numbers
from dicomai.study import Frame, Instance

STRUCTURE = Code("123037004", "SCT", "Body structure")
ABNORMALITY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
INTRACRANIAL = Code("128319008", "SCT", "Intracranial structure")
VOLUME = Code("118565006", "SCT", "Volume")
CM3 = Code("cm3", "UCUM", "cubic centimeter")

COLORS = ((255, 170, 0), (0, 170, 255), (170, 255, 0), (255, 0, 170))


def segment(number: int = 1, label: str = "Intracranial structure", **changes: Any) -> Segment:
    """Describe a segment; the intracranial structure unless told otherwise."""
    described = {
        "category": STRUCTURE,
        "type": INTRACRANIAL,
        "finding_site": INTRACRANIAL,
        "color": COLORS[number % len(COLORS)],
    }
    return Segment(number, label, **(described | changes))


def findings(
    *labels: NDArray[Any],
    segments: Sequence[Segment] | None = None,
    value: float = 1292.123456789,
    outcome: Outcome = Outcome.FINDINGS,
    remarks: Sequence[str] = (),
) -> Findings:
    """Make findings of label maps, every one with the same segments, each of which has a volume of `value` cm3."""
    described = tuple(segments or (segment(),))
    layers = tuple(Layer(one, described) for one in labels)
    measured = tuple(Measurement(VOLUME, value, CM3, one) for one in described)
    return Findings(layers, measured, outcome, tuple(remarks))


def provenance(**changes: Any) -> Provenance:
    """Make the provenance of a first result, made at 23:30 UTC on 31 December, in Berlin's new year."""
    made: dict[str, Any] = {
        "work_digest": "5e884898da280471",
        "generation": 0,
        "outputs": ("seg", "sr"),
        "algorithm": algorithm(),
        "installation": "7c0c8d62-3a3f-4c7e-8a0e-5d2f6f1f0001",
        "software_version": "0.1.0",
        "created": datetime(2025, 12, 31, 23, 30, 15, tzinfo=UTC),
        "timezone": "Europe/Berlin",
    }
    return Provenance(**(made | changes))


def algorithm(**changes: Any) -> Algorithm:
    """Name an algorithm."""
    made: dict[str, Any] = {
        "name": "brain_extraction",
        "version": "1.0.2",
        "family": Code("123110", "DCM", "Artificial Intelligence"),
        "weights_digest": "39a7b2b5f799faa1",
        "bundle_digest": "0c1f93e2a7b5d468",
        "manufacturer": "University of Somewhere",
    }
    return Algorithm(**(made | changes))


def sources(instances: Sequence[Instance], newest: Dataset | None = None, *, lossy: bool = False) -> Sources:
    """Sort instances' frames along their normal, as a volume does."""
    frames = [
        Frame(instance, number)
        for instance in instances
        for number in (range(1, instance.number_of_frames + 1) if "NumberOfFrames" in instance.header else (None,))
    ]
    return Sources(tuple(sorted(frames, key=height)), newest or instances[0].header, lossy)


def height(frame: Frame) -> float:
    """Give a frame's distance along its normal."""
    cosines = numbers(attributes(frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
    position = numbers(attributes(frame, "PlanePositionSequence"), "ImagePositionPatient")
    return float(np.dot(position, np.cross(cosines[:3], cosines[3:])))


def ball(shape: tuple[int, ...], value: int = 1) -> NDArray[np.uint8]:
    """Fill a ball off the middle of a grid: no flip leaves it where it is."""
    middle = [0.55, 0.4, 0.6]
    squares = [
        ((index + 0.5) / size - at) ** 2 for index, size, at in zip(np.indices(shape), shape, middle, strict=True)
    ]
    return np.where(sum(squares) < 0.08, value, 0).astype(np.uint8)
