"""What other services announce of series, written down: procedure steps, notifications, counts.

Each announcement that changes something raises the revision of its series under a row lock, as an image does: a
planning that is under way starts over, and cannot call complete what is known to be half. Long after the last image it
does no longer: what is planned then is held for a person in the transaction that plans it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomai.database import audit, holds
from dicomai.database.completeness import PATIENCE, Kind, StepState, judge, lack, outlook
from dicomai.database.engine import Database
from dicomai.database.index import SeriesState
from dicomai.database.results import made_here
from dicomai.database.tables import (
    Announcement,
    Association,
    AssociationSeries,
    ProcedureStep,
    ResultObject,
    Series,
    Study,
    Workitem,
)


class StepChange(StrEnum):
    """What came of a wish to change a procedure step."""

    DONE = "done"
    UNKNOWN = "unknown"  # there is no such step
    ENDED = "ended"  # it is completed or discontinued, and may not change any more
    EMPTY = "empty"  # it cannot be completed: no series was ever named


@dataclass(frozen=True, slots=True)
class Said:
    """What one notice says of one series.

    Attributes:
        instances: SOP Instance UIDs, of images and others.
        withdrawn: SOP Instance UIDs that earlier notices named and that can be had no more.
        is_final: whether the source says that this is all; a procedure step's own state says it for the step.
    """

    series_instance_uid: str
    instances: tuple[str, ...]
    withdrawn: tuple[str, ...] = ()
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class _Notice:
    """Where announcements come from."""

    kind: Kind
    origin: str
    study_instance_uid: str
    actor: str


class Announcements:
    """Writes announcements."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def begin_step(
        self, sop_instance_uid: str, calling_ae: str, study_instance_uid: str, series: Sequence[Said]
    ) -> bool:
        """Write down a procedure step in progress, with the series that it names already.

        Returns:
            False if there is a step of this UID; nothing was written.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        notice = _Notice(Kind.STEP, sop_instance_uid, study_instance_uid, f"mpps/{calling_ae}")
        try:
            with self._db.write() as session:
                now = self._db.now(session)
                session.add(
                    ProcedureStep(
                        sop_instance_uid=sop_instance_uid,
                        calling_ae=calling_ae[:16],
                        state=StepState.IN_PROGRESS.value,
                        study_instance_uid=study_instance_uid,
                        created_at=now,
                        changed_at=now,
                    )
                )
                session.flush()
                _record(session, now, notice, "procedure step IN PROGRESS")
                _write(session, now, notice, series)
                return True
        except IntegrityError:
            return False

    def change_step(
        self,
        sop_instance_uid: str,
        calling_ae: str,
        state: StepState,
        series: Sequence[Said] | None,
        *,
        wrong_entry: bool = False,
    ) -> StepChange:
        """Change a procedure step that is in progress.

        Args:
            sop_instance_uid: of the step.
            calling_ae: who changes it.
            state: the one that it has from now on.
            series: those that it has made; they take the place of all that it named before. None: as before.
            wrong_entry: it was begun for another patient or procedure than that of its images.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        with self._db.write() as session:
            step = session.scalars(
                sa.select(ProcedureStep).where(ProcedureStep.sop_instance_uid == sop_instance_uid).with_for_update()
            ).first()
            if step is None:
                return StepChange.UNKNOWN
            if step.state != StepState.IN_PROGRESS:
                return StepChange.ENDED
            of_step = (Announcement.kind == Kind.STEP.value, Announcement.origin == sop_instance_uid)
            before = session.scalars(sa.select(Announcement).where(*of_step)).all()
            if state is StepState.COMPLETED and not (before if series is None else series):
                return StepChange.EMPTY
            now = self._db.now(session)
            step.state, step.changed_at = state.value, now
            if wrong_entry:
                step.doubt = f"Procedure step {sop_instance_uid} was discontinued: a wrong worklist entry was selected."
            notice = _Notice(Kind.STEP, sop_instance_uid, step.study_instance_uid, f"mpps/{calling_ae}")
            if series is None:
                series = [Said(row.series_instance_uid, tuple(row.sop_instance_uids or ())) for row in before]
            is_final = state is not StepState.IN_PROGRESS
            said = [Said(one.series_instance_uid, one.instances, is_final=is_final) for one in series]
            dropped = {row.series_instance_uid for row in before} - {one.series_instance_uid for one in said}
            session.execute(sa.delete(Announcement).where(*of_step, Announcement.series_instance_uid.in_(dropped)))
            _record(session, now, notice, f"procedure step {state}")
            _write(session, now, notice, said, also=dropped)
            return StepChange.DONE

    def notify(self, sop_instance_uid: str, calling_ae: str, study_instance_uid: str, series: Sequence[Said]) -> bool:
        """Write down a notification of which instances are available.

        Returns:
            False if there is a notification of this UID; nothing was written.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        notice = _Notice(Kind.AVAILABILITY, sop_instance_uid, study_instance_uid, f"availability/{calling_ae}")
        try:
            with self._db.write() as session:
                known = sa.select(Announcement.id).where(
                    Announcement.kind == notice.kind.value, Announcement.origin == notice.origin
                )
                if session.scalars(known.limit(1)).first() is not None:
                    return False
                now = self._db.now(session)
                for one in series:
                    _withdraw(session, one)
                _record(session, now, notice, "availability notified")
                _write(session, now, notice, series)
                return True
        except IntegrityError:
            return False

    def now(self) -> datetime:
        """The moment on the database's clock."""
        with self._db.read() as session:
            return self._db.now(session)

    def studies_to_count(self, calling_ae: str) -> list[str]:
        """List the StudyInstanceUIDs of which an AE has sent series that are not complete yet."""
        with self._db.read() as session:
            query = (
                sa.select(Study.study_instance_uid)
                .join(Series, Series.study_id == Study.id)
                .join(AssociationSeries, AssociationSeries.series_id == Series.id)
                .join(Association, Association.id == AssociationSeries.association_id)
                .where(Association.calling_ae == calling_ae, Series.state == SeriesState.RECEIVING.value)
            )
            return list(session.scalars(query.distinct()))

    def counted(
        self, source: str, study_instance_uid: str, counts: Mapping[str, int], asked_at: datetime, apart: float
    ) -> None:
        """Write down how many instances a source has of each series.

        A count is its source's last word when two queries, at least `apart` seconds apart and both after the last image
        came, have given the same.

        Args:
            source: its name in the configuration.
            study_instance_uid: the study that was asked for.
            counts: by SeriesInstanceUID; only series that are being received are looked at.
            asked_at: on the database's clock, before the query was sent.
            apart: seconds.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        notice = _Notice(Kind.COUNT, source, study_instance_uid, f"count/{source}")
        with self._db.write() as session:
            waiting = session.scalars(
                sa.select(Series)
                .join(Study, Study.id == Series.study_id)
                .where(Study.study_instance_uid == study_instance_uid, Series.state == SeriesState.RECEIVING.value)
                .order_by(Series.id)
                .with_for_update(of=Series)
            ).all()
            changed = [
                series.series_instance_uid
                for series in waiting
                if counts.get(series.series_instance_uid, 0) > 0
                and _count(session, notice, series, counts[series.series_instance_uid], asked_at, apart)
            ]
            _touch(session, self._db.now(session), notice.actor, changed)


def overrule(session: Session, now: datetime, item: Workitem, actor: str) -> None:
    """Forget what was announced of the series behind an item, as far as it is not here: a person goes on without.

    Args:
        session: the transaction to write in.
        now: the moment on the database's clock.
        item: which a person releases.
        actor: who does.
    """
    missing = [series for series in holds.series_behind(session, item) if lack(session, series)]
    absent = outlook(session, item.study).absent if item.route["level"] == "study" else ()
    uids = [*(series.series_instance_uid for series in missing), *absent]
    session.execute(sa.delete(Announcement).where(Announcement.series_instance_uid.in_(uids)))
    for series in missing:
        _look_again(series, now)
    audit.record(session, now, actor, "overruled", workitem=item.id, study=item.study_id, detail=item.hold)


def believe(session: Session, study_id: int) -> None:
    """Take the images of a study for those of its patient, whatever procedure steps said: a person has looked."""
    session.execute(sa.update(ProcedureStep).where(holds.of_study(study_id)).values(doubt=""))


def _write(session: Session, now: datetime, notice: _Notice, said: Iterable[Said], also: Collection[str] = ()) -> None:
    """Write what a notice says, one row for each series; `also` are series of which it says nothing any more."""
    news = {one.series_instance_uid: one for one in said}
    ours = session.scalars(
        sa.select(ResultObject.series_instance_uid)
        .where(made_here(), ResultObject.series_instance_uid.in_(news))
        .distinct()
    )
    for uid in ours:  # what this node made itself is no news, and must not come back
        del news[uid]
    for one in news.values():
        row = _row(session, notice, one.series_instance_uid)
        row.sop_instance_uids = sorted(set(one.instances))
        row.instances = len(row.sop_instance_uids)
        row.is_final = one.is_final
        row.announced_at = now
    session.flush()
    _touch(session, now, notice.actor, {*news, *also})
    if notice.kind is Kind.STEP:
        _touch_study(session, now, notice)


def _row(session: Session, notice: _Notice, series_instance_uid: str) -> Announcement:
    row = session.scalars(
        sa.select(Announcement).where(
            Announcement.series_instance_uid == series_instance_uid,
            Announcement.kind == notice.kind.value,
            Announcement.origin == notice.origin,
        )
    ).first()
    if row is None:
        row = Announcement(
            study_instance_uid=notice.study_instance_uid,
            series_instance_uid=series_instance_uid,
            kind=notice.kind.value,
            origin=notice.origin,
            instances=0,
            is_final=False,
        )
        session.add(row)
    return row


def _withdraw(session: Session, said: Said) -> None:
    """Take instances that can be had no more out of earlier notifications."""
    rows = session.scalars(
        sa.select(Announcement).where(
            Announcement.series_instance_uid == said.series_instance_uid,
            Announcement.kind == Kind.AVAILABILITY.value,
        )
    )
    for row in rows if said.withdrawn else ():
        row.sop_instance_uids = sorted(set(row.sop_instance_uids or ()) - set(said.withdrawn))
        row.instances = len(row.sop_instance_uids)
        row.is_final = False  # what is left is all that can be had, which need not be the whole


def _count(session: Session, notice: _Notice, series: Series, count: int, asked_at: datetime, apart: float) -> bool:
    """Write a count; tells whether it says something new."""
    row = _row(session, notice, series.series_instance_uid)
    is_same = row.instances == count
    if is_same and row.announced_at >= series.last_received_at:
        if row.is_final or asked_at - row.announced_at < timedelta(seconds=apart):
            return False
        row.is_final = True
        return True
    row.instances, row.announced_at, row.is_final = count, asked_at, False
    return not is_same


def _touch(session: Session, now: datetime, actor: str, series_instance_uids: Collection[str]) -> None:
    """Let series be looked at anew of which something was announced; one that lacks images waits again."""
    session.flush()
    touched = session.scalars(
        sa.select(Series)
        .where(Series.series_instance_uid.in_(series_instance_uids), Series.revision > 0)
        .order_by(Series.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    for series in touched:
        verdict = judge(session, series)
        is_late = series.last_received_at + PATIENCE < now
        if series.state != SeriesState.RECEIVING and verdict is not None and verdict.missing and not is_late:
            series.state, series.reason = SeriesState.RECEIVING.value, ""
            detail = f"{verdict.missing} of {verdict.expected} instances that {verdict.who} announced are not here"
            audit.record(session, now, actor, "series reopened", study=series.study_id, detail=detail)
        _look_again(series, now, start_over=not is_late)
    for study_id in sorted({series.study_id for series in touched}):
        holds.settle(session, now, study_id, actor)


def _touch_study(session: Session, now: datetime, notice: _Notice) -> None:
    """Let work on the study as a whole be looked at anew: its procedure step says which series there are."""
    study = session.scalars(sa.select(Study).where(Study.study_instance_uid == notice.study_instance_uid)).one_or_none()
    if study is None:
        return
    session.flush()
    unfinished = (SeriesState.RECEIVING.value, SeriesState.WAITING.value)
    is_late = Series.last_received_at < now - PATIENCE
    session.execute(
        sa.update(Series)
        .where(Series.study_id == study.id, Series.state.in_(unfinished))
        .values(revision=Series.revision + sa.case((is_late, 0), else_=1), due_at=now)
    )
    holds.settle(session, now, study.id, notice.actor)


def _look_again(series: Series, now: datetime, *, start_over: bool = True) -> None:
    """Make a planning that is under way start over, and one that waits look at once."""
    series.revision += start_over
    if series.state != SeriesState.COMPLETE:
        series.due_at = now


def _record(session: Session, now: datetime, notice: _Notice, event: str) -> None:
    study = session.scalars(sa.select(Study.id).where(Study.study_instance_uid == notice.study_instance_uid)).first()
    audit.record(session, now, notice.actor, event, study=study, detail=f"SOP Instance {notice.origin}")
