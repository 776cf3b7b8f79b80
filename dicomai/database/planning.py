"""What the planner asks and writes: completeness, doubts about whose images these are, new workitems."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomai.association import AssociationEnd
from dicomai.database import audit, completeness, holds
from dicomai.database.associations import LEASE
from dicomai.database.engine import Database
from dicomai.database.index import SeriesState
from dicomai.database.tables import (
    Announcement,
    Association,
    AssociationSeries,
    Instance,
    Rejection,
    Series,
    Study,
    Version,
    Workitem,
    WorkitemInput,
)
from dicomai.database.transitions import cancel, cancel_unsent
from dicomai.study import Identity
from dicomai.workitem import FINAL, Kind, State

_ACTOR = "planner"
_LOOK_AGAIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class DueSeries:
    """A series that may be complete."""

    series_id: int
    study_id: int
    trace: str
    series_instance_uid: str
    revision: int
    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class Wait:
    """Until when a series waits, and, where it is not the ordinary wait, for what."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Image:
    """The version of an image that counts."""

    sop_instance_uid: str
    key: str
    fingerprint: str | None
    received_at: datetime
    identity: Identity


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """One input of work to come."""

    role: str
    series_id: int
    stack: str
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Work to come.

    Attributes:
        route: the route as it is now, as plain values.
        digest: the work digest.
        inputs: one or many.
    """

    route: dict[str, Any]
    digest: str
    inputs: tuple[PlannedInput, ...]


class Planning:
    """Reads and writes of the planner."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def due(self, limit: int = 100) -> list[DueSeries]:
        """List series whose due time has come, and before it those that are whole as it was announced."""
        with self._db.read() as session:
            now = self._db.now(session)
            states = (SeriesState.RECEIVING.value, SeriesState.WAITING.value)
            timed = sa.select(Series).where(Series.state.in_(states), Series.due_at <= now)
            rows = list(session.scalars(timed.order_by(Series.due_at).limit(limit)))
            stored = sa.select(sa.func.count(Instance.id)).where(Instance.series_id == Series.id)
            here = stored.correlate(Series).scalar_subquery()
            announced = sa.select(Series).where(
                Series.state == SeriesState.RECEIVING.value,
                Series.due_at > now,
                sa.exists().where(
                    Announcement.series_instance_uid == Series.series_instance_uid,
                    Announcement.is_final,
                    Announcement.instances == here,
                ),
            )
            for series in session.scalars(announced.order_by(Series.due_at)):
                verdict = completeness.judge(session, series)
                if verdict is not None and verdict.whole:
                    rows.append(series)
            return [
                DueSeries(s.id, s.study_id, s.study.trace, s.series_instance_uid, s.revision, s.last_received_at)
                for s in rows
            ]

    def wait(self, due: DueSeries, quiet_period: float, lost_period: float) -> Wait | None:
        """Say until when the series cannot be called complete; None when it can now.

        It need not wait where what a source gave as its last word is exactly what is here, see `completeness`. Else it
        waits for the quiet period after its last image; for every association that carried it and is open, until
        that has been idle for the quiet period or has ended; for the lost period after one that was aborted or lost,
        unless a later association carried the series and was released; and for the lost period after the last image
        and the last announcement while more was announced than is here, of which those count that come within
        `completeness.PATIENCE` of that image. Idle is what the receiver has renewed after
        the quiet period: one that it has not may be the half of a series that was cut off by its own end.
        """
        quiet = timedelta(seconds=quiet_period)
        lost = timedelta(seconds=lost_period)
        with self._db.read() as session:
            now = self._db.now(session)
            series = session.get_one(Series, due.series_id)
            verdict = completeness.judge(session, series)
            if verdict is not None and verdict.whole:
                return None
            moment, why = due.last_received_at + quiet, ""
            if verdict is not None and verdict.missing:
                announced_at = min(verdict.announced_at, due.last_received_at + completeness.PATIENCE)
                moment = max(moment, max(due.last_received_at, announced_at) + lost)
                why = f"Waits for {verdict.missing} of {verdict.expected} instances that {verdict.who} announced."
            carried = session.scalars(
                sa.select(Association)
                .join(AssociationSeries, AssociationSeries.association_id == Association.id)
                .where(AssociationSeries.series_id == due.series_id)
            ).all()
            good = [a.opened_at for a in carried if a.end == AssociationEnd.RELEASED]
            for association in carried:
                if association.ended_at is None:
                    idle = association.last_activity + quiet
                    renewed = association.lease_expires - LEASE
                    moment = max(moment, idle if renewed >= idle else max(idle, now + _LOOK_AGAIN))
                elif association.end != AssociationEnd.RELEASED and not any(
                    opened >= association.ended_at for opened in good
                ):
                    moment = max(moment, association.ended_at + lost)
            return Wait(moment, why) if moment > now else None

    def wait_for_study(self, study_id: int, lost_period: float) -> Wait | None:
        """Say until when work on a study as a whole has to wait though all that came is complete; None if not at all.

        It waits while a procedure step is in progress, or has announced series of which nothing came: for the lost
        period after the last image of the study and the last word of its steps, as far as that comes in time.
        """
        with self._db.read() as session:
            outlook = completeness.outlook(session, session.get_one(Study, study_id))
            if outlook.changed_at is None or not (outlook.going_on or outlook.absent):
                return None
            last = session.execute(
                sa.select(sa.func.max(Series.last_received_at)).where(Series.study_id == study_id)
            ).scalar_one()
            changed_at = min(outlook.changed_at, last + completeness.PATIENCE)
            until = max(last, changed_at) + timedelta(seconds=lost_period)
            what = f"{len(outlook.absent)} series that its modality announced" if outlook.absent else "its modality"
            return Wait(until, f"The study waits for {what}.") if until > self._db.now(session) else None

    def postpone(self, due: DueSeries, until: datetime, reason: str = "") -> None:
        """Look at the series again later, unless it has changed meanwhile."""
        with self._db.write() as session:
            session.execute(
                sa.update(Series)
                .where(Series.id == due.series_id, Series.revision == due.revision)
                .values(due_at=until, reason=reason)
            )

    def later(self, seconds: float) -> datetime:
        """A moment on the database's clock."""
        with self._db.read() as session:
            return self._db.now(session) + timedelta(seconds=seconds)

    def images(self, series_id: int) -> list[Image]:
        """List the images of a series, each in the version that counts, by SOP Instance UID."""
        with self._db.read() as session:
            return images_of(session, series_id)

    def keep_fingerprints(self, fingerprints: dict[str, str]) -> None:
        """Remember the fingerprints of images, by SOP Instance UID."""
        with self._db.write() as session:
            for uid, fingerprint in fingerprints.items():
                session.execute(
                    sa.update(Instance).where(Instance.sop_instance_uid == uid).values(fingerprint=fingerprint)
                )

    def open_series(self, study_id: int, but: int) -> int:
        """Count the series of a study that still receive, one left aside."""
        with self._db.read() as session:
            return _open_series(session, study_id, but)

    def series_of(self, study_id: int) -> list[int]:
        """List the series of a study that hold images, but those of which any is rejected."""
        rejected = sa.select(Instance.series_id).join(
            Rejection, Rejection.sop_instance_uid == Instance.sop_instance_uid
        )
        with self._db.read() as session:
            query = sa.select(Instance.series_id).join(Series, Series.id == Instance.series_id)
            return list(
                session.scalars(
                    query.where(Series.study_id == study_id, Instance.is_image, Series.id.not_in(rejected))
                    .distinct()
                    .order_by(Instance.series_id)
                )
            )

    def doubt(self, study_id: int) -> str:
        """Say in a sentence why it is in doubt whose images a study holds; empty where it is not."""
        with self._db.read() as session:
            return holds.doubt(session, study_id)

    def commit(self, due: DueSeries, plans: Sequence[Plan], reason: str, study_waits: Wait | None = None) -> bool:
        """Call the series complete and write its work, in one transaction.

        Args:
            due: the series as it was read.
            plans: its work.
            reason: why there is none, or not all.
            study_waits: until when the work on its study has to wait; the series then comes up again.

        Returns:
            False when the series changed since `due` was read, or a person's retry got in between: nothing was
            written, the series is due still.
        """
        try:
            with self._db.write() as session:
                now = self._db.now(session)
                done = session.execute(
                    sa.update(Series)
                    .where(Series.id == due.series_id, Series.revision == due.revision)
                    .values(
                        state=(SeriesState.WAITING if study_waits else SeriesState.COMPLETE).value,
                        due_at=study_waits.until if study_waits else None,
                        forward_at=now,
                        reason=study_waits.reason if study_waits else reason,
                    )
                    .returning(Series.id)
                ).first()
                if done is None:
                    return False
                audit.record(session, now, _ACTOR, "series complete", study=due.study_id, detail=reason)
                whole = _open_series(session, due.study_id) == 0 and study_waits is None
                if whole:  # those that waited for this one come up again, and find their own work done
                    session.execute(
                        sa.update(Series)
                        .where(Series.study_id == due.study_id, Series.state == SeriesState.WAITING.value)
                        .values(due_at=now)
                    )
                for plan in plans:
                    # A series that began to receive again brings the study-level work back when it is complete.
                    if whole or plan.route["level"] != "study":
                        _schedule(session, now, due.study_id, plan)
                holds.settle(session, now, due.study_id, _ACTOR)
                return True
        except IntegrityError:
            return False


def _open_series(session: Session, study_id: int, but: int | None = None) -> int:
    query = sa.select(sa.func.count()).select_from(Series)
    query = query.where(Series.study_id == study_id, Series.state == SeriesState.RECEIVING.value)
    if but is not None:
        query = query.where(Series.id != but)
    return session.execute(query).scalar_one()


def images_of(session: Session, series_id: int, only: frozenset[str] | None = None) -> list[Image]:
    """List the images of a series, each in the version that counts, by SOP Instance UID.

    Args:
        session: the transaction to look in.
        series_id: the series.
        only: the SOP Instance UIDs that are wanted; None for all.
    """
    rows = session.execute(
        sa.select(Instance.sop_instance_uid, Instance.fingerprint, Version)
        .join(Version, Version.instance_id == Instance.id)
        .where(Instance.series_id == series_id, Instance.is_image, sa.not_(Version.conflicting))
        .order_by(Instance.sop_instance_uid, Version.received_at, Version.id)
    )
    newest = {uid: (fingerprint, version) for uid, fingerprint, version in rows if only is None or uid in only}
    return [
        Image(uid, version.key, fingerprint, version.received_at, holds.identity_of(version))
        for uid, (fingerprint, version) in newest.items()
    ]


def newest_of(session: Session, wanted: Mapping[int, Collection[str]]) -> Image:
    """Give the image that came last of some, and is the last by its UID of those that came with it.

    Args:
        session: the transaction to look in.
        wanted: the SOP Instance UIDs, by the number of their series; one of them at least is here.
    """
    rows = session.execute(
        sa.select(Version.received_at, Instance.sop_instance_uid, Instance.series_id, Version.id)
        .join(Version, Version.instance_id == Instance.id)
        .where(Instance.series_id.in_(wanted), Instance.is_image, sa.not_(Version.conflicting))
        .order_by(Version.received_at.desc(), Version.id)
    )
    here = ((at, uid, number) for at, uid, series_id, number in rows if uid in wanted[series_id])
    _, together = next(groupby(here, key=itemgetter(0)))
    version = session.get_one(Version, max(together, key=itemgetter(1, 2))[2])
    image = session.get_one(Instance, version.instance_id)
    return Image(
        image.sop_instance_uid, version.key, image.fingerprint, version.received_at, holds.identity_of(version)
    )


def _schedule(session: Session, now: datetime, study_id: int, plan: Plan) -> None:
    """Write one inference item, unless the same work is there; what it supersedes is ended."""
    same = sa.select(Workitem.id).where(
        Workitem.kind == Kind.INFERENCE.value, Workitem.digest == plan.digest, Workitem.replaced_by.is_(None)
    )
    if session.scalars(same).first() is not None:
        return
    earlier = _earlier(session, study_id, plan)
    item = Workitem(
        kind=Kind.INFERENCE.value,
        state=State.SCHEDULED.value,
        study_id=study_id,
        route=plan.route,
        route_name=plan.route["name"],
        digest=plan.digest,
        supersedes=earlier[-1].id if earlier else None,
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=[
            WorkitemInput(
                role=i.role, series_id=i.series_id, stack=i.stack, sop_instance_uids=list(i.sop_instance_uids)
            )
            for i in plan.inputs
        ],
    )
    session.add(item)
    session.flush()
    audit.record(session, now, _ACTOR, "scheduled", workitem=item.id, study=study_id)
    for old in earlier:
        _supersede(session, now, old, item.id)


def _earlier(session: Session, study_id: int, plan: Plan) -> list[Workitem]:
    """The items of the same route on the same series and stacks, oldest first."""
    candidates = session.scalars(
        sa.select(Workitem)
        .where(
            Workitem.kind == Kind.INFERENCE.value,
            Workitem.study_id == study_id,
            Workitem.route_name == plan.route["name"],
            Workitem.replaced_by.is_(None),
        )
        .order_by(Workitem.id)
    ).all()
    if plan.route["level"] == "study":
        return list(candidates)
    wanted = {(i.role, i.series_id, i.stack) for i in plan.inputs}
    return [item for item in candidates if {(i.role, i.series_id, i.stack) for i in item.inputs} == wanted]


def _supersede(session: Session, now: datetime, old: Workitem, by: int) -> None:
    reason = f"Superseded by workitem {by}: images came after this one was planned."
    if State(old.state) not in FINAL:
        cancel(session, now, old, _ACTOR, reason)
    if old.result_id is None:
        return
    cancel_unsent(session, now, old.result_id, _ACTOR, reason)
