"""C-FIND, C-MOVE and C-GET SCU in the Study Root model (PS3.4 Annex C) on pynetdicom."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from pydicom.dataset import Dataset
from pynetdicom import build_context

from dicomai.config import SourceSettings, TlsSettings
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.query import FIND, ask, refusal
from dicomai.errors import DeliveryError, RejectedError, UnreachableError, UnreadableError
from dicomai.routing import values
from dicomai.sources.association import SourceLink, associate, peer_of
from dicomai.sources.query import FoundSeries, FoundStudy, Query, day_of
from dicomai.store import checked_uid
from dicomai.study import UNREADABLE

MOST_ANSWERS = 100_000
"""How many matches of one C-FIND are taken; a source that goes on and on does not fill our memory."""

_FOR_NOW = frozenset({0x0110, 0x0213, *range(0xA700, 0xA800), *range(0xC000, 0xD000)})

_T = TypeVar("_T")


def series_counts(
    source: SourceSettings, calling_ae: str, study_instance_uid: str, timeout: float, tls: TlsSettings | None = None
) -> dict[str, int]:
    """Ask a source how many instances each series of a study has there.

    Args:
        source: the entry of the configuration.
        calling_ae: the node's AE title.
        study_instance_uid: of the study.
        timeout: seconds without any progress after which the question is given up.
        tls: the section `[tls]`.

    Returns:
        Instances by SeriesInstanceUID: NumberOfSeriesRelatedInstances (0020,1209), or counted by a query at the level
        of images where the source leaves it empty. Empty if the source does not know the study.

    Raises:
        UnreachableError: no connection, it broke, or the source cannot answer for now.
        RejectedError: the source refuses the association or the query for good.
        ConfigurationError: a file of `[tls]` is missing or wrong.
    """
    with finding(peer_of(source, calling_ae, timeout, tls or TlsSettings())) as finder:
        return {series.series_instance_uid: series.instances for series in finder.series(study_instance_uid)}


@contextlib.contextmanager
def finding(peer: Peer) -> "Iterator[Finder]":
    """Hold an association for queries; errors are those of `series_counts`."""
    with associate(peer, [build_context(FIND)]) as link:
        yield Finder(link)


class Finder:
    """Queries over one association."""

    def __init__(self, link: SourceLink) -> None:
        """Query over an association.

        Raises:
            RejectedError: the source accepted no presentation context for C-FIND.
        """
        link.require(FIND)
        self._link = link
        self.strangers = 0
        """How many answers were left out because they are not what was asked for."""

    def studies(self, query: Query) -> list[FoundStudy]:
        """Find studies, in the order of their dates; what the source gives though nobody asked for it is left out.

        Raises:
            UnreachableError: the association broke, or the source cannot answer for now.
            RejectedError: the source refuses the query.
        """

        def take(answer: Dataset) -> FoundStudy | None:
            uid = _uid(answer, "StudyInstanceUID")
            study = FoundStudy(uid, _text(answer, "AccessionNumber"), day_of(_text(answer, "StudyDate")))
            return study if uid and query.takes_study(study) else None

        keys = {"StudyInstanceUID": "", "StudyDate": "", "AccessionNumber": ""} | query.keys
        found = {study.study_instance_uid: study for study in self._find("STUDY", keys, take)}
        return sorted(found.values(), key=lambda study: (str(study.day), study.study_instance_uid))

    def series(self, study_instance_uid: str) -> list[FoundSeries]:
        """Find the series of a study, and how many instances each has.

        Raises:
            UnreachableError: the association broke, or the source cannot answer for now.
            RejectedError: the source refuses the query.
        """

        def take(answer: Dataset) -> FoundSeries | None:
            uid = _uid(answer, "SeriesInstanceUID")
            if not uid or _text(answer, "StudyInstanceUID") != study_instance_uid:
                return None
            count = _number(answer, "NumberOfSeriesRelatedInstances")
            return FoundSeries(uid, _text(answer, "Modality"), _text(answer, "SeriesDescription"), count)

        keys = {"StudyInstanceUID": study_instance_uid} | dict.fromkeys(
            ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"), ""
        )
        found = {series.series_instance_uid: series for series in self._find("SERIES", keys, take)}
        return [
            series
            if series.instances
            else replace(series, instances=len(self.instances(study_instance_uid, series.series_instance_uid)))
            for series in found.values()
        ]

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> dict[str, str]:
        """Find the instances of a series: SOP Class UID by SOP Instance UID; '' where the source does not give it.

        Raises:
            UnreachableError: the association broke, or the source cannot answer for now.
            RejectedError: the source refuses the query.
        """
        asked = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}

        def take(answer: Dataset) -> tuple[str, str] | None:
            uid = _uid(answer, "SOPInstanceUID")
            if not uid or any(_text(answer, keyword) != value for keyword, value in asked.items()):
                return None
            return uid, _uid(answer, "SOPClassUID")

        return dict(self._find("IMAGE", asked | {"SOPInstanceUID": "", "SOPClassUID": ""}, take))

    def _find(self, level: str, keys: Mapping[str, str], take: Callable[[Dataset], _T | None]) -> list[_T]:
        """Ask, and take what fits of the answers."""
        taken, strangers = list[_T](), self.strangers

        def judge(answer: Dataset | None) -> None:
            one = take(answer) if answer is not None else None
            if one is None:
                self.strangers += 1
            else:
                taken.append(one)
            if len(taken) + self.strangers - strangers > MOST_ANSWERS:
                raise RejectedError(
                    f"{self._link.peer} has more than {MOST_ANSWERS} matches at the level {level}: ask for less."
                )

        status = ask(self._link, level, keys, judge)
        if status != 0x0000:
            raise _refusal(self._link.peer, level, status)
        return taken


def _refusal(peer: Peer, level: str, status: int) -> DeliveryError:
    said = refusal(peer, level, status)
    if status in _FOR_NOW:
        return UnreachableError(f"{said}: ask for less at a time, or look into its log; another attempt may succeed.")
    return RejectedError(f"{said}: look up the reason in its log.")


def _text(ds: Dataset, keyword: str) -> str:
    """Read one value; '' where it is missing, has several or cannot be read."""
    try:
        found = values(ds, keyword)
    except UNREADABLE:
        return ""
    return found[0].strip("\0 ") if len(found) == 1 else ""


def _uid(ds: Dataset, keyword: str) -> str:
    """Read a UID; '' where it is none."""
    try:
        return checked_uid(_text(ds, keyword), keyword)
    except UnreadableError:
        return ""


def _number(ds: Dataset, keyword: str) -> int:
    """Read a count; 0 where there is none."""
    text = _text(ds, keyword)
    return int(text) if text.isdecimal() else 0
