"""Rejection notes: Key Object Selection documents that withdraw instances (IHE RAD IOCM, RAD-66; PS3.16 CID 7011)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
"""SOP Class UID of Key Object Selection Document Storage."""

TITLES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
"""The document titles (DCM) that reject: meaning by code."""

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class RejectionNote:
    """What a rejection note says.

    Attributes:
        code: a key of `TITLES`.
        sop_instance_uids: what it withdraws, each once.
    """

    code: str
    sop_instance_uids: tuple[str, ...]

    @classmethod
    def of(cls, ds: Dataset) -> "RejectionNote | None":
        """Read a Key Object Selection document; None if its title is not one that rejects.

        The content tree and the evidence name the same instances (PS3.3 C.17.6.2.1). Where they do not, what either
        names counts: that an image is wrongly left alone can harm, that it is wrongly left out is seen and mended.

        Raises:
            One of `study.UNREADABLE`: it is broken.
        """
        title = next(iter(ds.get("ConceptNameCodeSequence") or ()), Dataset())
        code = str(title.get("CodeValue") or "").strip()
        if code not in TITLES or str(title.get("CodingSchemeDesignator") or "").strip() != "DCM":
            return None
        named = (str(item.get("ReferencedSOPInstanceUID") or "") for item in _references(ds))
        return cls(code, tuple(dict.fromkeys(uid for uid in named if _UID.fullmatch(uid))))

    @property
    def title(self) -> str:
        """Code and meaning, for a sentence."""
        return titled(self.code)


def titled(code: str) -> str:
    """Give a code of `TITLES` with its meaning, for a sentence."""
    return f"{code}, {TITLES[code]}"


def _references(ds: Dataset) -> Iterator[Dataset]:
    """Go through the items of every Referenced SOP Sequence, those of the evidence first."""
    for study in ds.get("CurrentRequestedProcedureEvidenceSequence") or ():
        for series in study.get("ReferencedSeriesSequence") or ():
            yield from series.get("ReferencedSOPSequence") or ()
    for content in ds.get("ContentSequence") or ():  # TID 2010 has all references on its first level
        yield from content.get("ReferencedSOPSequence") or ()
