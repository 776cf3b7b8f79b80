"""Arrivals in groups: those that come while one group is being committed are committed together as the next.

Nearly every instance is one more image of a series that is being received, over an association that has brought others
of it. Such ones need a handful of statements for a whole group; for all else the index asks what it has to.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError

from dicomai.database.engine import Database
from dicomai.database.index import Arrival, Index, Outcome, Recorded, SeriesState
from dicomai.database.lane import Run
from dicomai.database.tables import UID, Association, Instance, ResultObject, Series, Version
from dicomai.errors import ContendedError, DicomaiError
from dicomai.log import place

log = structlog.get_logger()

_LARGEST_GROUP = 64
_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _Waiting:
    """An arrival whose group is still to be committed.

    Attributes:
        series_id: of the series that it belongs to.
        trace: of its study.
        outcome: what was recorded; None where it turned out to need more than its group.
    """

    arrival: Arrival
    series_id: int
    trace: str
    association: int | None
    quiet_period: float
    outcome: Outcome | None = None
    is_done: bool = False


class Recorder:
    """Records the arrivals of one process; safe to use from all threads."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database
        self._index = Index(database)
        self._turn = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        # Series that hold images, by study and series UID; and by which associations they were carried.
        self._series: dict[tuple[str, str], tuple[int, str]] = {}
        self._carried: set[tuple[int | None, int]] = set()

    def record(
        self, arrival: Arrival, association: int | None, quiet_period: float, *, same_pixels: bool | None = None
    ) -> Outcome:
        """Record an arrival; returns when it is committed. See `Index.record`."""
        known = self._series.get((arrival.study_instance_uid, arrival.series_instance_uid))
        if known and arrival.is_image and same_pixels is None and (association, known[0]) in self._carried:
            outcome = self._in_group(_Waiting(arrival, *known, association, quiet_period))
            if outcome is not None:
                return outcome
        outcome = self._index.record(arrival, association, quiet_period, same_pixels=same_pixels)
        if outcome.recorded is Recorded.NEW and outcome.is_image:
            self._remember(arrival, association, outcome)
        return outcome

    def is_known(self, key: str) -> bool:
        """Tell whether a version with this key was committed."""
        return self._index.is_known(key)

    def may_restore(self, arrival: Arrival, association: int | None) -> bool:
        """Tell whether a row for this arrival may have gone by the lane: only such ones are not durable at once."""
        return self._index.is_new_of_carried(arrival, association)

    def _remember(self, arrival: Arrival, association: int | None, outcome: Outcome) -> None:
        if len(self._series) + len(self._carried) > _MOST_REMEMBERED:
            self._series.clear()
            self._carried.clear()
        self._carried.add((association, outcome.series_id))
        self._series[arrival.study_instance_uid, arrival.series_instance_uid] = (outcome.series_id, outcome.trace)

    def _in_group(self, waiting: _Waiting) -> Outcome | None:
        """Wait for one's turn; whoever has it commits for all who wait."""
        self._queue.append(waiting)
        while not waiting.is_done:
            with self._turn:
                if not waiting.is_done:
                    self._commit([self._queue.popleft() for _ in range(min(len(self._queue), _LARGEST_GROUP))])
        return waiting.outcome

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            outcomes = self._write(group)
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.outcome = outcome
        except (IntegrityError, ContendedError):  # another process is at one of them too: each for itself
            pass
        except Exception as error:  # noqa: BLE001  it may be the fault of one, for which the others must not pay
            log.warning(
                "a group of arrivals could not be recorded; each is tried by itself",
                remedy="see what is refused next; if nothing is, it has passed",
                arrivals=len(group),
                error=str(error) if isinstance(error, DicomaiError) else f"{type(error).__name__} at {place(error)}",
            )
        finally:
            for waiting in group:
                waiting.is_done = True

    def _write(self, group: Sequence[_Waiting]) -> list[Outcome | None]:
        """Write what is as simple as it seemed, in one transaction; None for what is not."""
        with self._db.swiftly() as (run, now):
            taken = {uid for w in group for (uid,) in run(_KNOWN, {"uid": w.arrival.sop_instance_uid})}
            outcomes: list[Outcome | None] = []
            written: list[_Waiting] = []
            for waiting in group:
                if waiting.arrival.sop_instance_uid in taken:
                    outcomes.append(None)
                    continue
                taken.add(waiting.arrival.sop_instance_uid)
                outcomes.append(Outcome(Recorded.NEW, waiting.trace, waiting.series_id, is_image=True))
                written.append(waiting)
            if written:
                _insert(run, written, now)
        return outcomes


def _insert(run: Run, written: Sequence[_Waiting], now: datetime) -> None:
    """Insert new images of known series; the rows are touched in the same order by all processes."""
    for waiting in sorted(written, key=lambda one: one.arrival.sop_instance_uid):
        run(_INSTANCE, _instance(waiting))
        run(_VERSION, _version(waiting, now))
    by_series: dict[int, list[_Waiting]] = {}
    for waiting in written:
        by_series.setdefault(waiting.series_id, []).append(waiting)
    for series_id, some in sorted(by_series.items()):
        due = now + timedelta(seconds=some[-1].quiet_period)
        run(_REOPEN, {"its_id": series_id, "more": len(some), "now": now, "due": due})
    for association in sorted({waiting.association for waiting in written if waiting.association is not None}):
        run(_ACTIVE, {"its_id": association, "now": now})


def _instance(waiting: _Waiting) -> dict[str, Any]:
    return {
        "series_id": waiting.series_id,
        "sop_instance_uid": waiting.arrival.sop_instance_uid,
        "sop_class_uid": waiting.arrival.sop_class_uid,
        "is_image": True,
        "conflict": "",
    }


def _version(waiting: _Waiting, now: datetime) -> dict[str, Any]:
    arrival = waiting.arrival
    return {
        "its_uid": arrival.sop_instance_uid,
        "key": arrival.key,
        "digest": arrival.digest,
        "size": arrival.size,
        "conflicting": False,
        "received_at": now,
        "association_id": waiting.association,
        "patient_id": arrival.identity.patient_id,
        "issuer_of_patient_id": arrival.identity.issuer_of_patient_id,
        "patient_name": arrival.identity.patient_name,
        "patient_birth_date": arrival.identity.patient_birth_date,
    }


_UID = sa.bindparam("uid", type_=UID)
_KNOWN = sa.union_all(
    sa.select(Instance.sop_instance_uid).where(Instance.sop_instance_uid == _UID),
    sa.select(ResultObject.sop_instance_uid).where(ResultObject.sop_instance_uid == _UID),
)
_INSTANCE = sa.insert(cast("sa.Table", Instance.__table__)).values(
    {
        name: sa.bindparam(name, type_=Instance.__table__.c[name].type)
        for name in ("series_id", "sop_instance_uid", "sop_class_uid", "is_image", "conflict")
    }
)
_VERSION = sa.insert(cast("sa.Table", Version.__table__)).values(
    {
        column.name: sa.bindparam(column.name, type_=column.type)
        for column in Version.__table__.c
        if column.name not in {"id", "instance_id"}
    }
    | {
        "instance_id": sa.select(Instance.id)
        .where(Instance.sop_instance_uid == sa.bindparam("its_uid"))
        .scalar_subquery()
    }
)
_SERIES = cast("sa.Table", Series.__table__)
_REOPEN = (
    sa.update(_SERIES)
    .where(_SERIES.c.id == sa.bindparam("its_id"))
    .values(
        state=SeriesState.RECEIVING.value,
        reason="",
        revision=_SERIES.c.revision + sa.bindparam("more"),
        last_received_at=sa.bindparam("now"),
        due_at=sa.bindparam("due"),
    )
)
_ASSOCIATION = cast("sa.Table", Association.__table__)
_ACTIVE = (
    sa.update(_ASSOCIATION).where(_ASSOCIATION.c.id == sa.bindparam("its_id")).values(last_activity=sa.bindparam("now"))
)
