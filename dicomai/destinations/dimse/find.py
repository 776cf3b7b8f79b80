"""C-FIND SCU (Study Root, PS3.4 Annex C): what a Storage SCP shows of the objects that it was sent."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom import build_context
from pynetdicom.status import QR_FIND_SERVICE_CLASS_STATUS

from dicomai.destinations.base import Outgoing
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.errors import DeliveryError, RejectedError, UnreachableError
from dicomai.study import UNREADABLE

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""

_MOST_ANSWERS = 10_000  # a peer that passes over the key of the instance gives the whole series; none goes on for ever
_MOST_STRAY_ANSWERS = 100  # where all that is asked for is one instance
_PENDING = frozenset({0xFF00, 0xFF01})
_FOR_GOOD = frozenset({0x0122, 0x0124, 0x0211, *range(0xA900, 0xAA00)})
_KEYWORDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object belongs by its own attributes.

    Attributes:
        patient_id: PatientID (0010,0020); not to be shown to anybody.
        study_instance_uid: StudyInstanceUID (0020,000D).
        series_instance_uid: SeriesInstanceUID (0020,000E).
        sop_instance_uid: SOPInstanceUID (0008,0018).
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, outgoing: Outgoing) -> "Place":
        """Read it from an object."""
        ds = pydicom.dcmread(BytesIO(outgoing.data), specific_tags=list(_KEYWORDS), stop_before_pixels=True)
        return cls(*(_text(ds, keyword) for keyword in _KEYWORDS))

    @property
    def keys(self) -> dict[str, str]:
        """The unique keys down to the instance (PS3.4 C.4.1.2.1)."""
        return {
            "StudyInstanceUID": self.study_instance_uid,
            "SeriesInstanceUID": self.series_instance_uid,
            "SOPInstanceUID": self.sop_instance_uid,
        }


class Finder:
    """Queries over one association."""

    def __init__(self, link: Link) -> None:
        """Query over an association on which the context was accepted."""
        self._link = link
        self._known: dict[str, set[str]] = {}

    def whereabouts(self, place: Place) -> str | None:
        """Say how an object is filed: '' as it was sent, a few words where otherwise, None where it is not shown.

        Where it is not found by its UIDs of study, series and instance, it is asked for by the last alone. That is
        relational, and who cannot do it does not show the object.

        Raises:
            UnreachableError: the association broke, or the peer cannot answer for now.
            RejectedError: the peer refuses the query.
        """
        if self._find("IMAGE", place.keys):
            others = self._patients(place.study_instance_uid) - {"", place.patient_id}
            return "filed under another PatientID" if others else ""
        found = self._find("IMAGE", {"SOPInstanceUID": place.sop_instance_uid}, "StudyInstanceUID", relational=True)
        if not found:
            return None
        others = {_text(ds, "StudyInstanceUID") for ds in found} - {"", place.study_instance_uid}
        return f"filed under another {'StudyInstanceUID' if others else 'SeriesInstanceUID'}"

    def lacks(self, study_instance_uid: str, series_instance_uid: str, images: int) -> bool:
        """Tell whether a series is not shown, or with fewer instances than that, where the peer counts them.

        Raises:
            UnreachableError: the association broke, or the peer cannot answer for now.
            RejectedError: the peer refuses the query.
        """
        keys = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
        found = self._find("SERIES", keys, "NumberOfSeriesRelatedInstances")
        counts = [_text(ds, "NumberOfSeriesRelatedInstances") for ds in found]
        return not found or all(count.isdecimal() and int(count) < images for count in counts)

    def _patients(self, study_instance_uid: str) -> set[str]:
        if study_instance_uid not in self._known:
            found = self._find("STUDY", {"StudyInstanceUID": study_instance_uid}, "PatientID")
            self._known[study_instance_uid] = {_text(ds, "PatientID") for ds in found}
        return self._known[study_instance_uid]

    def _find(self, level: str, keys: Mapping[str, str], *wanted: str, relational: bool = False) -> list[Dataset]:
        """Ask, and give the answers that are what was asked for: some peers pass over keys.

        A relational query is one that a peer need not understand (PS3.4 C.4.1.3.2): one that it refuses, or to which it
        gives all that it has, has no answer.
        """
        link, taken, answers = self._link, list[Dataset](), 0
        asked = identifier(level, {**keys, **dict.fromkeys(wanted, "")})
        with link.talk():
            for status, answer in link.assoc.send_c_find(asked, FIND):
                code = status.get("Status")
                if code is None:
                    raise link.broken()
                if code not in _PENDING:
                    if code != 0x0000 and not relational:
                        raise _refusal(link.peer, level, code)
                    break
                answers += 1
                if relational and answers == _MOST_STRAY_ANSWERS:  # it passes over the key: that may be all it has
                    link.assoc.send_c_cancel(1, query_model=FIND)
                if answers > _MOST_ANSWERS:
                    error = UnreachableError if relational else RejectedError
                    raise error(f"{link.peer} has over {_MOST_ANSWERS} answers for one object: see its log.")
                if answer is not None and _fits(answer, keys, _KEY_OF[level]):
                    taken.append(answer)
        return [] if relational and answers >= _MOST_STRAY_ANSWERS else taken


@contextlib.contextmanager
def finding(peer: Peer) -> Iterator[Finder]:
    """Hold an association for queries.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good, or the peer offers no C-FIND.
    """
    with requested(peer, [build_context(FIND)], connect_timeout=peer.timeout) as link:
        yield Finder(link)


_KEY_OF = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


def _fits(answer: Dataset, keys: Mapping[str, str], own: str) -> bool:
    """Tell whether an answer is what was asked for: some peers leave the keys of the levels above out of it."""
    found = {keyword: _text(answer, keyword) for keyword in keys}
    return found[own] == keys[own] and all(found[keyword] in {"", value} for keyword, value in keys.items())


def identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    """Make the identifier of a query or a retrieval (PS3.4 C.4.1.1.3, C.4.2.1.4)."""
    ds = Dataset()
    for keyword, value in {"QueryRetrieveLevel": level, **keys}.items():
        tag = Tag(keyword)
        # Scanners make UIDs that break PS3.5 9.1, and archives and results hold them.
        ds.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    return ds


def _refusal(peer: Peer, level: str, status: int) -> DeliveryError:
    _, meaning = QR_FIND_SERVICE_CLASS_STATUS.get(status, ("", ""))
    said = f"{peer} answered {status:04X} ({meaning or 'failure'}) to a query at the level {level}"
    if status in _FOR_GOOD:
        return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
    return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")


def _text(ds: Dataset, keyword: str) -> str:
    """Read one value; '' where it is missing or cannot be read."""
    try:
        return str(ds.get(keyword) or "").strip("\0 ")
    except UNREADABLE:
        return ""
