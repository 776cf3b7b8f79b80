"""What the planner asks and writes: completeness, doubts about whose images these are, new workitems."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomai.association import AssociationEnd
from dicomai.database import audit
from dicomai.database.associations import LEASE
from dicomai.database.engine import Database
from dicomai.database.index import SeriesState
from dicomai.database.tables import (
    Acceptance,
    Association,
    AssociationSeries,
    Instance,
    Series,
    Version,
    Workitem,
    WorkitemInput,
)
from dicomai.database.transitions import cancel
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
        """List series whose due time has come, the longest waiting first."""
        with self._db.read() as session:
            rows = session.scalars(
                sa.select(Series)
                .where(Series.state == SeriesState.RECEIVING.value, Series.due_at <= self._db.now(session))
                .order_by(Series.due_at)
                .limit(limit)
            )
            return [
                DueSeries(s.id, s.study_id, s.study.trace, s.series_instance_uid, s.revision, s.last_received_at)
                for s in rows
            ]

    def wait_until(self, due: DueSeries, quiet_period: float, lost_period: float) -> datetime | None:
        """Say until when the series cannot be called complete; None when it can now.

        It waits for the quiet period after its last image; for every association that carried it and is open, until
        that has been idle for the quiet period or has ended; and for the lost period after one that was aborted or
        lost, unless a later association carried the series and was released. Idle is what the receiver has renewed
        after the quiet period: one that it has not may be the half of a series that was cut off by its own end.
        """
        quiet = timedelta(seconds=quiet_period)
        lost = timedelta(seconds=lost_period)
        with self._db.read() as session:
            now = self._db.now(session)
            moment = due.last_received_at + quiet
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
            return moment if moment > now else None

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
        """List the series of a study that hold images."""
        with self._db.read() as session:
            query = sa.select(Instance.series_id).join(Series, Series.id == Instance.series_id)
            return list(
                session.scalars(
                    query.where(Series.study_id == study_id, Instance.is_image).distinct().order_by(Instance.series_id)
                )
            )

    def doubt(self, study_id: int) -> str:
        """Say in a sentence why it is in doubt whose images a study holds; empty where it is not."""
        with self._db.read() as session:
            return doubt(session, study_id)

    def commit(self, due: DueSeries, plans: Sequence[Plan], reason: str) -> bool:
        """Call the series complete and write its work, in one transaction.

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
                    .values(state=SeriesState.COMPLETE.value, due_at=None, reason=reason)
                    .returning(Series.id)
                ).first()
                if done is None:
                    return False
                audit.record(session, now, _ACTOR, "series complete", study=due.study_id, detail=reason)
                whole = _open_series(session, due.study_id) == 0
                for plan in plans:
                    # A series that began to receive again brings the study-level work back when it is complete.
                    if whole or plan.route["level"] != "study":
                        _schedule(session, now, due.study_id, plan)
                _hold(session, now, due.study_id, doubt(session, due.study_id))
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
        Image(uid, version.key, fingerprint, version.received_at, _identity(version))
        for uid, (fingerprint, version) in newest.items()
    ]


def doubt(session: Session, study_id: int) -> str:
    """Say in a sentence why it is in doubt whose images a study holds; empty where it is not.

    Args:
        session: the transaction to look in.
        study_id: the study.
    """
    rows = session.execute(
        sa.select(Instance.id, Instance.conflict, Version)
        .join(Version, Version.instance_id == Instance.id)
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study_id, Instance.is_image, sa.not_(Version.conflicting))
        .order_by(Instance.id, Version.received_at, Version.id)
    ).all()
    flagged = session.scalars(sa.select(Series.conflict).where(Series.study_id == study_id, Series.conflict != ""))
    conflicts = sorted({conflict for _, conflict, _ in rows if conflict} | set(flagged))
    if conflicts:
        more = f" (And {len(conflicts) - 1} more of the kind.)" if len(conflicts) > 1 else ""
        return f"{conflicts[0]}{more} Release the item to go on with the images as they came first, or cancel it."
    identities = {_identity(version) for version in {instance: v for instance, _, v in rows}.values()}
    if len(identities) > 1:
        first, *others = identities
        keywords = sorted({keyword for other in others for keyword in first.differences(other)})
        return (
            f"The images of this study disagree in {', '.join(keywords)}; "
            "correct them in the PACS and send the study again."
        )
    return ""


def _identity(version: Version) -> Identity:
    return Identity(version.patient_id, version.issuer_of_patient_id, version.patient_name, version.patient_birth_date)


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
    unsent = session.scalars(
        sa.select(Workitem)
        .where(
            Workitem.kind == Kind.DELIVERY.value,
            Workitem.result_id == old.result_id,
            Workitem.state.not_in([state.value for state in FINAL]),
            Workitem.lease_owner.is_(None),
            ~sa.exists().where(Acceptance.workitem_id == Workitem.id),
        )
        .with_for_update()  # one that is claimed at this moment is being sent, and goes on: never half a result
    )
    for delivery in unsent:
        cancel(session, now, delivery, _ACTOR, reason)


def _hold(session: Session, now: datetime, study_id: int, why: str) -> None:
    """Hold the open items of a study, or let them go when the doubt is gone."""
    items = session.scalars(
        sa.select(Workitem).where(
            Workitem.study_id == study_id,
            Workitem.state.not_in([state.value for state in FINAL]),
            Workitem.hold != why,
        )
    )
    for item in items:
        item.hold = why
        item.changed_at = now
        audit.record(session, now, _ACTOR, "held" if why else "let go", workitem=item.id, study=study_id, detail=why)
