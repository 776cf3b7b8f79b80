"""Forward rule: which of the images that came go on, where to, and what stays of what they say of a person."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydicom.dataset import Dataset

from dicomai.routing import excluded, not_matched


class Deidentify(StrEnum):
    """Whether images go on as they came."""

    NONE = "none"  # byte for byte
    BASIC = "basic"  # by the Basic Application Level Confidentiality Profile (PS3.15 E.2)


class Retain(StrEnum):
    """What stays of what the profile takes away: its options that are built (PS3.15 E.3)."""

    PATIENT_CHARACTERISTICS = "patient-characteristics"  # age, sex, size, weight and the like (E.3.7)
    FULL_DATES = "full-dates"  # dates and times as they are (E.3.6)
    MODIFIED_DATES = "modified-dates"  # all dates of a patient moved by the same number of days (E.3.6)


@dataclass(frozen=True, slots=True)
class Forward:
    """Which series go on, and where to.

    Attributes:
        name: of the rule.
        match: keyword to pattern, as a route's.
        exclude: keyword to pattern, as a route's.
        destinations: names.
        returns_as: the AE titles under which destinations send, by name: what came from there does not go back.
        deidentify: whether they go as they came.
        retain: what de-identification leaves.
    """

    name: str
    match: dict[str, str]
    exclude: dict[str, str]
    destinations: tuple[str, ...]
    returns_as: dict[str, tuple[str, ...]]
    deidentify: Deidentify = Deidentify.NONE
    retain: tuple[Retain, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether no series needs to be looked at to know that it goes on."""
        return not (self.match or self.exclude)

    @property
    def comes_from(self) -> frozenset[str]:
        """The AE titles under which its destinations send."""
        return frozenset(title for titles in self.returns_as.values() for title in titles)


def why_not(headers: Sequence[Dataset], rule: Forward) -> str:
    """Say in a sentence why a series does not go on by a rule; empty where it does.

    A series goes whole or not at all: it goes when any of its images matches and none is excluded.

    Args:
        headers: of its images; of one instance of a series that holds none.
        rule: the rule.
    """
    for header in headers:
        why = excluded(header, rule.exclude)
        if why:
            return f"{why}."
    unmatched = [not_matched(header, rule.match) for header in headers]
    return "" if not all(unmatched) else f"{(unmatched or ['nothing of it can be read'])[0]}."
