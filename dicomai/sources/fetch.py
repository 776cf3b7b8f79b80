"""Fetching: what a source has and this node lacks, brought here, and looked for in the index afterwards."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dicomai.association import AssociationEnd
from dicomai.config import SourceSettings, TlsSettings
from dicomai.database import Database
from dicomai.database.retrieval import Retrieval
from dicomai.errors import StorageFullError, StoreError, UnreachableError
from dicomai.filemeta import FileMeta
from dicomai.intake import Intake
from dicomai.sources.association import peer_of
from dicomai.sources.dimse import Finder, finding
from dicomai.sources.query import FoundSeries, FoundStudy, Query
from dicomai.sources.retrieve import Retriever, getting, moving

_RENEWAL_SECONDS = 10.0
_LOOK_SECONDS = 0.2


@dataclass(slots=True)
class Item:
    """A series that was asked for.

    Attributes:
        study: as the source describes it.
        series: as the source describes it.
        here: how many of its instances this node has.
        is_whole: whether this node has every instance that the source has.
        problem: why it has not, as far as it was tried.
    """

    study: FoundStudy
    series: FoundSeries
    here: int = 0
    is_whole: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found.

    Attributes:
        items: every series that was asked for, study by study.
        strangers: how many answers were left out because they are not what was asked for.
    """

    items: tuple[Item, ...]
    strangers: int

    @property
    def missing(self) -> int:
        """How many instances have to be sent: a series that is not whole is fetched anew."""
        return sum(item.series.instances for item in self.items if not item.is_whole)


class Fetcher:
    """Brings series from a source to this node."""

    def __init__(
        self,
        source: SourceSettings,
        database: Database,
        *,
        calling_ae: str,
        tls: TlsSettings | None = None,
        intake: Intake | None = None,
        patience: float = 10.0,
    ) -> None:
        """Make a fetcher.

        Args:
            source: the entry of the configuration.
            database: the node's, in which arrivals are looked for.
            calling_ae: the node's AE title, which is the destination of C-MOVE.
            tls: the section `[tls]`.
            intake: takes in what comes by C-GET; None for C-MOVE, where the node's receiver does.
            patience: after a C-MOVE that succeeded, seconds without a new instance until the rest is given up.
        """
        self._source = source
        self._kept = Retrieval(database)
        self._peer = peer_of(source, calling_ae, source.timeout, tls or TlsSettings())
        self._intake = intake
        self._patience = patience

    def plan(
        self, query: Query, limit: int | None = None, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Plan:
        """Find what was asked for, and hold it against what is here.

        Args:
            query: what is wanted.
            limit: the most studies, the oldest first; None for all.
            progress: called with how many studies were looked at, of how many.

        Raises:
            UnreachableError: no connection, it broke, or the source cannot answer for now.
            RejectedError: the source refuses the association or the query.
            StoreError: the database did not answer.
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        items = []
        with finding(self._peer) as finder:
            studies = finder.studies(query)[:limit]
            for done, study in enumerate(studies):
                progress(done, len(studies))
                wanted = [one for one in finder.series(study.study_instance_uid) if query.takes_series(one)]
                new = [Item(study, series) for series in wanted]
                for item in new:
                    self._look(item, finder)
                items.extend(new)
            return Plan(tuple(items), finder.strangers)

    def fetch(self, plan: Plan, progress: Callable[[int], None] = lambda _: None) -> Iterator[list[Item]]:
        """Fetch what is not here, study by study; the items say afterwards what came of it.

        Args:
            plan: what is wanted.
            progress: called with how many instances were dealt with.

        Yields:
            The items of a study, as soon as it is dealt with.

        Raises:
            UnreachableError: no connection, or it broke and another attempt got no further.
            RejectedError: the source refuses the association, or to send anything to this node.
            StoreError: the database did not answer, or the disk is full or broken.
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        done = 0
        for study, items in itertools.groupby(plan.items, lambda item: item.study.study_instance_uid):
            missing = [item for item in items if not item.is_whole]
            while missing:
                before = sum(item.here for item in missing)
                try:
                    self._fetch_study(study, missing, _after(done, progress))
                    break
                except UnreachableError:
                    self._recount(missing)
                    if sum(item.here for item in missing) <= before:
                        raise
            done += sum(item.series.instances for item in missing)
            yield missing

    def _fetch_study(self, study: str, items: Sequence[Item], progress: Callable[[int], None]) -> None:
        done = 0
        with self._retrieving(study, items) as retriever:
            for item in items:
                if not item.is_whole:
                    self._fetch_series(retriever, item, _after(done, progress))
                done += item.series.instances

    def _fetch_series(self, retriever: Retriever, item: Item, progress: Callable[[int], None]) -> None:
        if self._intake is not None and not self._intake.has_room():
            raise StorageFullError("The storage's disk is nearly full: free some, then fetch again.")
        outcome = retriever.retrieve(item.study.study_instance_uid, item.series.series_instance_uid, progress)
        if isinstance(retriever.failure, StoreError):
            raise retriever.failure
        if outcome.is_success and self._intake is None:
            self._wait(item)
        self._look(item, Finder(retriever.link))
        if not item.is_whole:
            item.problem = retriever.problem(outcome)

    @contextlib.contextmanager
    def _retrieving(self, study: str, items: Sequence[Item]) -> Iterator[Retriever]:
        if self._intake is None:
            with moving(self._peer) as retriever:
                yield retriever
            return
        with finding(self._peer) as finder:
            classes = {c for i in items for c in finder.instances(study, i.series.series_instance_uid).values() if c}
        intake = self._intake
        with _association(intake, self._source) as entry:

            def keep(meta: FileMeta, data: memoryview) -> None:
                intake.accept(meta, (data,), entry.row, study)

            with getting(self._peer, sorted(classes), keep) as retriever:
                yield retriever
            entry.is_whole = all(item.is_whole for item in items)

    def _wait(self, item: Item) -> None:
        """Wait for instances that a source said it had sent though they are still on their way."""
        end = time.monotonic() + self._patience
        while item.here < item.series.instances and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            before = item.here
            self._recount([item])
            if item.here > before:
                end = time.monotonic() + self._patience

    def _recount(self, items: Sequence[Item]) -> None:
        for item in items:
            item.here = len(self._kept.find(item.study.study_instance_uid, item.series.series_instance_uid))

    def _look(self, item: Item, finder: Finder) -> None:
        """Hold what is here against what the source has: one by one, by number where the source names none.

        Equal numbers alone could hide that one instance is not here and another not there.
        """
        study, series = item.study.study_instance_uid, item.series.series_instance_uid
        here = {kept.sop_instance_uid for kept in self._kept.find(study, series)}
        item.here = len(here)
        there = finder.instances(study, series) if here else {}
        item.is_whole = there.keys() <= here if there else item.here == item.series.instances


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda more: progress(done + more)


@dataclass(slots=True)
class _Entry:
    """An association as the database knows it; lost unless it turns out that it brought all."""

    row: int
    is_whole: bool = False


@contextlib.contextmanager
def _association(intake: Intake, source: SourceSettings) -> Iterator[_Entry]:
    """Write an association down for as long as it lasts, so that no series is taken for complete before its end."""
    entry = _Entry(intake.open_association(source.ae_title, source.host))
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEWAL_SECONDS):
            with contextlib.suppress(StoreError):  # the database is away: what comes in says so
                intake.renew([entry.row])

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield entry
    finally:
        over.set()
        thread.join()
        intake.close_association(entry.row, AssociationEnd.RELEASED if entry.is_whole else AssociationEnd.LOST)
