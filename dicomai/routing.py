"""Route; and which routes a stack of images takes, or why not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

DEFAULT_EXCLUDE = {"ImageType": "LOCALIZER|DERIVED|SECONDARY"}


class Level(StrEnum):
    """What one workitem of a route is made of."""

    SERIES = "series"  # every stack that matches, on its own
    STUDY = "study"  # all stacks of the study that match, together, once the whole study is complete


class OutsideValidated(StrEnum):
    """What to do with images that the bundle accepts but was not validated for."""

    REFUSE = "refuse"  # do not run
    REPORT = "report"  # run, and say so in the SR


@dataclass(frozen=True, slots=True)
class Route:
    """What to run on which images, and where the results go."""

    name: str
    model: str
    match: dict[str, str]
    exclude: dict[str, str]
    level: Level
    outside_validated: OutsideValidated
    outputs: tuple[str, ...]
    destinations: tuple[str, ...]
    quiet_period: float
    prior: bool = False  # the report compares with the patient's last result of this route


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a route takes a stack, and in a sentence why not."""

    route: Route
    matches: bool
    why_not: str = ""


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def values(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Give every value of an attribute as text; none where it is missing, empty or cannot be decoded."""
    try:
        value = ds.get(keyword)
    except (BytesLengthException, NotImplementedError):  # a number cut off, or a VR that does not exist
        return ()
    if value is None:
        return ()
    items = value if isinstance(value, MultiValue | list | tuple) else [value]
    return tuple(text for text in (str(item).strip() for item in items) if text)


def matches(ds: Dataset, keyword: str, pattern: str) -> bool:
    """Tell whether any value of an attribute matches a pattern whole, in any case; a missing one never does."""
    compiled = _compile(pattern)
    return any(compiled.fullmatch(value) for value in values(ds, keyword))


def not_matched(ds: Dataset, patterns: Mapping[str, str]) -> str:
    """Say which attribute does not match its pattern; empty where all do.

    Patient's attributes may be matched on, but their values are never quoted in the sentence.
    """
    for keyword, pattern in patterns.items():
        if not matches(ds, keyword, pattern):
            return f"{_quote(ds, keyword)}, not '{pattern}'"
    return ""


def excluded(ds: Dataset, patterns: Mapping[str, str]) -> str:
    """Say which attribute matches a pattern that excludes it; empty where none does. See `not_matched`."""
    for keyword, pattern in patterns.items():
        if matches(ds, keyword, pattern):
            return f"{_quote(ds, keyword)}, excluded by '{pattern}'"
    return ""


def decide(ds: Dataset, route: Route) -> Decision:
    """Hold one stack's attributes against one route."""
    why_not = not_matched(ds, route.match) or excluded(ds, route.exclude)
    return Decision(route, matches=not why_not, why_not=why_not)


def match(ds: Dataset, routes: tuple[Route, ...]) -> tuple[Decision, ...]:
    """Hold one stack's attributes against every route: what to run, and why not."""
    return tuple(decide(ds, route) for route in routes)


# Attributes whose values may stand in a log: they describe the images, not the person.
_SPEAKABLE = frozenset(
    {
        "Modality", "SeriesDescription", "StudyDescription", "ProtocolName", "ImageType", "BodyPartExamined",
        "Manufacturer", "ManufacturerModelName", "SOPClassUID", "SeriesNumber", "SliceThickness", "EchoTime",
        "RepetitionTime", "InversionTime", "ScanningSequence", "SequenceVariant", "ConvolutionKernel",
        "AcquisitionContrast", "MagneticFieldStrength", "ContrastBolusAgent", "ViewPosition", "Rows", "Columns",
    }
)  # fmt: skip


def _quote(ds: Dataset, keyword: str) -> str:
    found = values(ds, keyword)
    if not found:
        return f"{keyword} {'has no value that can be read' if keyword in ds else 'is missing'}"
    if keyword not in _SPEAKABLE:
        return f"{keyword} is another"
    return f"{keyword} is '{chr(92).join(found)}'"
