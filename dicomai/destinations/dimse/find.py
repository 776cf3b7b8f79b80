"""C-FIND SCU (Study Root, PS3.4 Annex C): what a Storage SCP shows of the objects that it was sent."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import build_context

from dicomai.destinations.base import Outgoing
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.destinations.dimse.query import FIND, ask, refusal
from dicomai.errors import DeliveryError, RejectedError, UnreachableError
from dicomai.study import IDENTITY, UNREADABLE, Identity

FEWEST_LISTED = 4
"""From how many objects of a series on the peer is asked for a list of it, which is as long as the series."""

_MOST_LISTED = 10_000  # instances of a series in one list; what is beyond them is asked for one by one
_MOST_ANSWERS = 20_000  # a peer that passes over a key gives more than was asked for; none goes on for ever
_MOST_STRAY_ANSWERS = 100  # where all that is asked for is one instance
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
        with outgoing.open() as file:
            ds = pydicom.dcmread(file, specific_tags=list(_KEYWORDS), stop_before_pixels=True)
        return cls(*(_text(ds, keyword) for keyword in _KEYWORDS))

    @property
    def series(self) -> tuple[str, str]:
        """The UIDs of study and series."""
        return self.study_instance_uid, self.series_instance_uid

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

    def whereabouts(self, places: Sequence[Place]) -> dict[str, str | None]:
        """Say how objects are filed, by SOP Instance UID: '' as they were sent, a few words where otherwise, or None.

        None stands for what is not shown. Many of one series are looked up in one list of it. What is not found by its
        UIDs of study, series and instance is asked for by the last alone. That is relational, and who cannot do it does
        not show the object.

        Raises:
            UnreachableError: the association broke, or the peer cannot answer for now.
            RejectedError: the peer refuses the query.
        """
        listed = {
            series: self._listed(*series)
            for series, count in Counter(place.series for place in places).items()
            if count >= FEWEST_LISTED
        }
        return {p.sop_instance_uid: self._whereabouts(p, listed.get(p.series, frozenset())) for p in places}

    def patients(self, study_instance_uid: str) -> list[Identity]:
        """Say whose a study is shown to be: each patient under whom it is shown, once.

        Raises:
            UnreachableError: the association broke, or the peer cannot answer for now.
            RejectedError: the peer refuses the query.
        """
        taken = list[Identity]()

        def take(answer: Dataset | None) -> None:
            if answer is None:  # it is about this study, and may be what forbids to send
                raise UnreachableError(f"{self._link.peer} gave an answer on a study that cannot be read: see its log.")
            if _text(answer, "StudyInstanceUID") in {"", study_instance_uid}:  # some leave out what they were asked by
                taken.append(Identity.shown(answer))

        keys = {"StudyInstanceUID": study_instance_uid, **dict.fromkeys(IDENTITY, "")}
        status, _ = self._ask("STUDY", keys, take, None)
        if status != 0x0000:
            raise _refused(self._link.peer, "STUDY", status)
        return list(dict.fromkeys(taken))

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

    def _whereabouts(self, place: Place, listed: frozenset[str]) -> str | None:
        if place.sop_instance_uid in listed or self._find("IMAGE", place.keys):
            others = self._patients(place.study_instance_uid) - {"", place.patient_id}
            return "filed under another PatientID" if others else ""
        found = self._find("IMAGE", {"SOPInstanceUID": place.sop_instance_uid}, "StudyInstanceUID", relational=True)
        if not found:
            return None
        others = {_text(ds, "StudyInstanceUID") for ds in found} - {"", place.study_instance_uid}
        return f"filed under another {'StudyInstanceUID' if others else 'SeriesInstanceUID'}"

    def _listed(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """List the instances of a series, as far as the peer does: what is not in the list may be there all the same.

        Some give so many answers and no more, some do not answer such a query, some pass over keys. So an answer counts
        only if it bears both UIDs that were asked for.
        """
        keys = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
        found = set[str]()

        def take(answer: Dataset | None) -> None:
            if answer is not None and all(_text(answer, keyword) == uid for keyword, uid in keys.items()):
                found.add(_text(answer, "SOPInstanceUID"))

        self._ask("IMAGE", {**keys, "SOPInstanceUID": ""}, take, enough=_MOST_LISTED)
        return frozenset(found)

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
        taken = list[Dataset]()

        def take(answer: Dataset | None) -> None:
            if answer is not None and _fits(answer, keys, _KEY_OF[level]):
                taken.append(answer)

        enough = _MOST_STRAY_ANSWERS if relational else None  # it passes over the key: that may be all it has
        status, answers = self._ask(level, {**keys, **dict.fromkeys(wanted, "")}, take, enough)
        if status != 0x0000 and not relational:
            raise _refused(self._link.peer, level, status)
        return [] if relational and answers >= _MOST_STRAY_ANSWERS else taken

    def _ask(
        self, level: str, keys: Mapping[str, str], take: Callable[[Dataset | None], None], enough: int | None
    ) -> tuple[int, int]:
        """Ask; gives the status that ends the answers, and how many there were.

        Raises:
            UnreachableError: the association broke, or the peer goes on though it was asked to end.
            RejectedError: the peer goes on and on.
        """
        answers = 0

        def count(answer: Dataset | None) -> None:
            nonlocal answers
            answers += 1
            if answers > _MOST_ANSWERS:
                error = RejectedError if enough is None else UnreachableError
                raise error(f"{self._link.peer} has over {_MOST_ANSWERS} answers to one query: see its log.")
            take(answer)

        status = ask(self._link, level, keys, count, enough)
        return status, answers


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


def _refused(peer: Peer, level: str, status: int) -> DeliveryError:
    said = refusal(peer, level, status)
    if status in _FOR_GOOD:
        return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
    return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")


def _text(ds: Dataset, keyword: str) -> str:
    """Read one value; '' where it is missing or cannot be read."""
    try:
        return str(ds.get(keyword) or "").strip("\0 ")
    except UNREADABLE:
        return ""
