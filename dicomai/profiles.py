"""Profiles: what a destination shows of a result, as its administrator states it and as a probe of it has found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydicom.uid import UID

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage."""

LABEL_MAP_SYNTAXES = ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1")
"""The transfer syntaxes that a label map is written in, the smaller first: RLE Lossless, Explicit VR Little Endian."""

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
_PICTURE = "keyimage"

# Segmentations and structured reports, which a legacy PACS does not show, and the pictures that stand in for them.
_INSTEAD = {"seg": _PICTURE, "fractional": _PICTURE, "sr": _PICTURE, "report": "reportimage"}


class Profile(StrEnum):
    """What the readers at a destination can show."""

    OHIF = "ohif"  # binary segmentations and structured reports, as most do today
    LABELMAP = "labelmap"  # label map segmentations too
    LEGACY = "legacy"  # neither of them: the key image stands in for them


@dataclass(frozen=True, slots=True)
class Probe:
    """What a destination was last seen to accept in negotiation.

    Attributes:
        tried_at: when it was last asked.
        error: why it gave no answer then; empty where it did.
        answered_at: when it last answered; None where it never has.
        accepted: SOP Class UID and Transfer Syntax UID of each presentation context that it accepted then.
    """

    tried_at: datetime
    error: str = ""
    answered_at: datetime | None = None
    accepted: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def syntaxes(self, sop_class_uid: str) -> frozenset[str]:
        """Give the transfer syntaxes that it accepts objects of a class in, of those that were proposed."""
        return frozenset(syntax for sop_class, syntax in self.accepted if sop_class == sop_class_uid)


def wanted(profile: Profile, outputs: Iterable[str]) -> tuple[str, ...]:
    """Give the outputs that go to a destination, of those that a route names.

    A legacy PACS is sent the key image in place of segmentations and reports, whether or not the route names it, and in
    place of the report that images were not analysed a picture that says so.
    """
    if profile is not Profile.LEGACY:
        return tuple(outputs)
    return tuple(dict.fromkeys([*(_INSTEAD.get(one, one) for one in outputs), _PICTURE]))


def label_map(takers: Iterable[tuple[Profile, Probe | None]]) -> str | None:
    """Give the transfer syntax in which all destinations of a result take a label map; None where one may not.

    A result has one segmentation, the same for all: a label map only where each that is sent it is known to take it,
    because it is said to, and was not seen to refuse it. Of one that was never seen to answer it is believed for
    Explicit VR Little Endian, which every reader knows.

    Args:
        takers: profile and last probe of each destination; a legacy one is sent no segmentation.
    """
    asked = [(profile, probe) for profile, probe in takers if profile is not Profile.LEGACY]
    if not asked or any(profile is not Profile.LABELMAP for profile, _ in asked):
        return None
    common = set(LABEL_MAP_SYNTAXES)
    for _, probe in asked:
        seen = probe is not None and probe.answered_at is not None
        common &= probe.syntaxes(LABEL_MAP) if probe and seen else {LABEL_MAP_SYNTAXES[-1]}
    return next((syntax for syntax in LABEL_MAP_SYNTAXES if syntax in common), None)


def denied(profile: Profile, probe: Probe, services: Mapping[str, str] | None = None) -> str:
    """Say in a sentence how what a destination accepts is at odds with what is said of it; empty where it is not.

    Args:
        profile: what it is said to show.
        probe: what it was last seen to accept.
        services: by SOP Class UID the key of the configuration that has it asked for more than to store.
    """
    if probe.answered_at is None:
        return ""
    for sop_class, key in (services or {}).items():
        if not probe.syntaxes(sop_class):
            return f"it refuses what {key} asks of it ({UID(sop_class).name}): allow that there, or take the key out."
    if profile is Profile.LEGACY:
        return ""
    for name, sop_class in (("Segmentation Storage", _SEGMENTATION), ("Comprehensive 3D SR Storage", _REPORT)):
        if not probe.syntaxes(sop_class):
            return f'it refuses {name}: allow it there, or set profile = "legacy", so that it is sent key images.'
    if profile is Profile.LABELMAP and not probe.syntaxes(LABEL_MAP) & set(LABEL_MAP_SYNTAXES):
        return (
            'it has profile = "labelmap", but refuses Label Map Segmentation Storage: it is sent binary segmentations'
            " until that is allowed there."
        )
    return ""
