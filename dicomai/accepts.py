"""Input: what a bundle takes in one role, and whether images are within what it was validated for."""

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomai.errors import NotAcceptedError
from dicomai.routing import values

# What enhanced multi-frame MR calls by another keyword (PS3.3 C.8.13.5.4 MR Echo, C.8.13.5.7 MR Modifier).
_ENHANCED_KEYWORD = {"EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes"}

# What may be said in codes instead, or as well (PS3.3 C.7.6.4, C.7.6.4b): enhanced images have nothing else.
_CODED_KEYWORD = {"ContrastBolusAgent": "ContrastBolusAgentSequence"}

# Quoted in sentences, beside the attributes of group 0018 (acquisition): they describe the images, not the person.
_QUOTABLE = frozenset({"Modality", "SeriesDescription", "ImageType", "AcquisitionContrast", "StudyDescription"})

_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}  # of an Age String (PS3.5 6.2, VR AS)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Condition(_Part):
    """What an attribute must be like. All that is given must hold.

    Attributes:
        pattern: some value matches this whole, in any case.
        never: no value matches this whole, in any case; written `not` in TOML. A missing attribute passes.
        min: every value is a number of at least this; of an age: in years.
        max: every value is a number of at most this.
        absent: the attribute may be missing or empty; on its own: it must be.
    """

    pattern: str | None = None
    never: str | None = Field(default=None, alias="not")
    min: float | None = None
    max: float | None = None
    absent: bool = False

    @field_validator("pattern", "never")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"'{value}' is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.absent or self._asks or self.never is not None):
            raise ValueError("a condition says at least one of: pattern, not, min, max, absent")
        return self

    @property
    def _asks(self) -> bool:
        return any(one is not None for one in (self.pattern, self.min, self.max))

    def holds(self, found: tuple[str, ...]) -> bool:
        """Tell whether an attribute's values, as text, are as they must be."""
        if not found:
            return self.absent or not self._asks
        if self.absent and not self._asks and self.never is None:
            return False
        return self._matches(found) and self._in_range(found)

    def _matches(self, found: tuple[str, ...]) -> bool:
        def whole(pattern: str) -> bool:
            return any(re.fullmatch(pattern, text, re.IGNORECASE | re.DOTALL) for text in found)

        return (self.pattern is None or whole(self.pattern)) and (self.never is None or not whole(self.never))

    def _in_range(self, found: tuple[str, ...]) -> bool:
        if self.min is None and self.max is None:
            return True
        numbers = [_number(text) for text in found]
        return all(
            number is not None and (self.min is None or number >= self.min) and (self.max is None or number <= self.max)
            for number in numbers
        )


def _as_condition(value: Any) -> Any:
    return {"pattern": value} if isinstance(value, str) else value


Conditions = dict[str, Annotated[Condition, BeforeValidator(_as_condition)]]


class Validated(_Part):
    """`[input.validated]`: for which images the results were shown to be good.

    Attributes:
        images: what they are in words, written `for` in TOML, such as 'T1-weighted MR of adults'.
        all: keyword = condition; every one must hold.
        any: alternatives, each keyword = condition; every condition of at least one must hold.
    """

    images: str = Field(alias="for")
    all: Conditions = Field(default_factory=dict)
    any: tuple[Conditions, ...] = ()

    @field_validator("all", "any")
    @classmethod
    def _keywords(cls, value: Conditions | tuple[Conditions, ...]) -> Conditions | tuple[Conditions, ...]:
        for conditions in value if isinstance(value, tuple) else (value,):
            for keyword in conditions:
                if tag_for_keyword(keyword) is None:
                    raise ValueError(f"'{keyword}' is no DICOM keyword (PS3.6), such as 'RepetitionTime'")
        return value

    def failing(self, header: Dataset, frame: int) -> tuple[str, ...]:
        """Name the attributes (keywords) that put images outside; none where they are inside."""
        per_alternative = [_failing(conditions, header, frame) for conditions in self.any]
        none_holds = bool(per_alternative) and all(per_alternative)
        outside = [keyword for keywords in per_alternative for keyword in keywords] if none_holds else []
        return tuple(dict.fromkeys([*outside, *_failing(self.all, header, frame)]))


class Input(_Part):
    """`[[input]]`: what a bundle takes in one role.

    Attributes:
        role: the key under which `inference.json` finds the image, such as 'image'.
        modality: values of Modality (0008,0060) that are taken; anything else is refused whatever a route says.
        min_slices: as `volume.load` takes it.
        spacing_tolerance: by how much, as a fraction of the median, slices may lie apart unevenly.
        tilted: whether a tilted gantry is taken.
        lossy: whether images are taken that were compressed with loss.
        validated: for which images the results were shown to be good; None where nothing is said about it.
    """

    role: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    modality: Annotated[tuple[str, ...], Field(min_length=1)]
    min_slices: Annotated[int, Field(ge=1)] = 1
    spacing_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.02
    tilted: bool = False
    lossy: bool = False
    validated: Validated | None = None

    def accept(self, header: Dataset, name: str) -> None:
        """Refuse what the bundle `name` can never take.

        Raises:
            NotAcceptedError: the modality is another.
        """
        modality = str(header.get("Modality") or "").strip()
        if modality not in self.modality:
            takes, pattern = " or ".join(self.modality), "|".join(self.modality)
            this = modality or "of no stated modality"
            raise NotAcceptedError(
                f"{name} takes {takes}, this series is {this}: match Modality = '{pattern}' in the route."
            )

    def outside_validated(self, header: Dataset, name: str, frame: int = 1) -> str | None:
        """Say why images are outside of what the bundle `name` was validated for; None where they are inside.

        The sentence quotes what describes the images; what describes a person is named and not quoted.
        """
        if self.validated is None:
            return None
        failing = self.validated.failing(header, frame)
        if not failing:
            return None
        present = [keyword for keyword in failing if attribute(header, keyword, frame)]
        reasons = [_quote(header, keyword, frame) for keyword in present] or [f"no {failing[0]}"]
        images, why = self.validated.images, ", ".join(reasons)
        return f"{name} was validated for {images}; this series is outside of that ({why})."


def attribute(header: Dataset, keyword: str, frame: int = 1) -> tuple[str, ...]:
    """Give every value of an attribute as text, wherever it stands; none where it is missing.

    In an enhanced multi-frame instance it may stand in the shared functional groups or in those of the frame
    (PS3.3 C.7.6.16), and may have another keyword there; a contrast agent may be
    there in codes only. Where PatientAge is missing, it is the time from PatientBirthDate to StudyDate.
    """
    for name in (keyword, _ENHANCED_KEYWORD.get(keyword)):
        for place in _places(header, frame):
            found = values(place, name) if name else ()
            if found:
                return found
    coded = header.get(_CODED_KEYWORD.get(keyword, "")) or ()
    if not isinstance(coded, Sequence | tuple):
        return (str(coded),)  # some send text where a sequence belongs
    for item in coded:
        return values(item, "CodeMeaning") or ("unnamed",)
    return _age(header) if keyword == "PatientAge" else ()


def _places(header: Dataset, frame: int) -> Iterator[Dataset]:
    yield header
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    for groups in (*shared[:1], *per_frame[frame - 1 : frame]):
        for element in groups:
            if element.VR == "SQ":
                yield from element.value[:1]


def _age(header: Dataset) -> tuple[str, ...]:
    born, seen = (_date(str(header.get(keyword) or "")) for keyword in ("PatientBirthDate", "StudyDate"))
    if born is None or seen is None or seen < born:
        return ()
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return (f"{years:03d}Y",)


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text.strip(), "%Y%m%d").date()  # noqa: DTZ007  a DA has no time zone
    except ValueError:
        return None


def _number(text: str) -> float | None:
    age = re.fullmatch(r"(\d{3})([DWMY])", text)
    if age:
        return int(age[1]) * _YEARS[age[2]]
    try:
        return float(text)
    except ValueError:
        return None


def _failing(conditions: Conditions, header: Dataset, frame: int) -> list[str]:
    return [key for key, condition in conditions.items() if not condition.holds(attribute(header, key, frame))]


def _quote(header: Dataset, keyword: str, frame: int) -> str:
    tag = tag_for_keyword(keyword) or 0
    if tag >> 16 != 0x0018 and keyword not in _QUOTABLE:
        return keyword
    texts = attribute(header, keyword, frame)
    if dictionary_VR(keyword) in {"DS", "FD", "FL"}:
        texts = tuple(f"{number:g}" if (number := _number(text)) is not None else text for text in texts)
    return f"{keyword} {chr(92).join(texts)[:64]}"
