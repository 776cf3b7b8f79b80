"""The worklist as people see it: list, show, retry, cancel, release."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import announcements, audit, forwards, holds
from dicomai.database.engine import Database
from dicomai.database.index import SeriesState
from dicomai.database.rejections import rejected_input
from dicomai.database.results import schedule_delivery, wants
from dicomai.database.tables import (
    Acceptance,
    Audit,
    Instance,
    Result,
    ResultObject,
    Series,
    Workitem,
    WorkitemInput,
)
from dicomai.database.transitions import cancel
from dicomai.database.withdrawals import withdrawals_of
from dicomai.errors import WorklistError
from dicomai.workitem import FINAL, Kind, State

_LATELY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the worklist: a workitem, or a series that has none (then `id` is None)."""

    id: int | None
    kind: str
    state: str
    study: str
    series: str
    route: str
    destination: str
    progress: int
    attempt: int
    changed_at: datetime
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain values for JSON."""
        return {**asdict(self), "changed_at": self.changed_at.isoformat()}


class Shown(StrEnum):
    """What of the worklist is to be listed: the items in a state, or those that are held, in whatever state."""

    HELD = "HELD"
    SCHEDULED = State.SCHEDULED.value
    IN_PROGRESS = State.IN_PROGRESS.value
    COMPLETED = State.COMPLETED.value
    CANCELED = State.CANCELED.value


class Overview:
    """Looks at the worklist and, on a person's word, changes it."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def entries(self, limit: int = 1000, state: Shown | None = None) -> list[Entry]:
        """List workitems, and series on which nothing runs.

        First what is held, then what failed within a day, then the rest; of each the latest change first.

        Args:
            limit: so many at most.
            state: only those; of series there are none then.
        """
        with self._db.read() as session:
            since = self._db.now(session) - _LATELY
            failed = sa.and_(
                Workitem.state == State.CANCELED.value, Workitem.replaced_by.is_(None), Workitem.changed_at > since
            )
            turn = sa.case((Workitem.hold != "", 0), (failed, 1), else_=2)
            query = sa.select(Workitem, turn).order_by(turn, Workitem.changed_at.desc(), Workitem.id.desc())
            if state is not None:
                held = Workitem.hold != ""
                query = query.where(held if state is Shown.HELD else sa.and_(Workitem.state == state.value, ~held))
            lines = [(of, _of_item(item)) for item, of in session.execute(query.limit(limit))]
            if state is None:
                lines += [(2, _of_series(series)) for series in session.scalars(_idle().limit(limit))]
        lines.sort(key=lambda line: (-line[0], line[1].changed_at, line[1].id or 0), reverse=True)
        return [entry for _, entry in lines[:limit]]

    def show(self, number: int) -> dict[str, Any]:
        """Give all there is to know of one workitem, as plain values.

        Raises:
            WorklistError: there is no such item.
        """
        with self._db.read() as session:
            item = _get(session, number)
            history = session.scalars(sa.select(Audit).where(Audit.workitem_id == number).order_by(Audit.id)).all()
            objects = session.execute(
                sa.select(ResultObject, Acceptance)
                .outerjoin(
                    Acceptance,
                    sa.and_(Acceptance.result_object_id == ResultObject.id, Acceptance.workitem_id == number),
                )
                .where(ResultObject.result_id == item.result_id)
                .order_by(ResultObject.n)
            ).all()
            return {
                **_of_item(item).as_dict(),
                "study_instance_uid": item.study.study_instance_uid,
                "digest": item.digest,
                "generation": item.generation,
                "supersedes": item.supersedes,
                "replaced_by": item.replaced_by,
                "inputs": [
                    {
                        "role": i.role,
                        "series_instance_uid": i.series.series_instance_uid,
                        "stack": i.stack,
                        "instances": len(i.sop_instance_uids),
                    }
                    for i in item.inputs
                ],
                "objects": [
                    {
                        "output": o.output,
                        "sop_class_uid": o.sop_class_uid,
                        "sop_instance_uid": o.sop_instance_uid,
                        "series_instance_uid": o.series_instance_uid,
                        "key": o.key,
                        "accepted_at": a.at.isoformat() if a else None,
                        "status": f"0x{a.status:04X}" if a else None,
                        "comment": a.comment if a else "",
                    }
                    for o, a in objects
                    if wants(item, o.output)
                ],
                "history": [
                    {"at": h.at.isoformat(), "actor": h.actor, "event": h.event, "detail": h.detail} for h in history
                ],
            }

    def cancel(self, number: int, actor: str) -> None:
        """End an item.

        Raises:
            WorklistError: there is no such item, or it has ended already.
        """
        with self._db.write() as session:
            item = _get(session, number)
            if State(item.state) in FINAL:
                raise WorklistError(f"Workitem {number} is {item.state} already; a final state is final.")
            cancel(session, self._db.now(session), item, actor, f"Canceled by {actor}.")

    def retry(self, number: int, actor: str) -> int:
        """Make a new item that replaces an ended one; gives its number.

        A result of which anything was offered to a destination gets a new generation, so that other UIDs tell the
        two apart.

        Raises:
            WorklistError: there is no such item, it has not ended, or something has taken its place.
        """
        with self._db.write() as session:
            _lock_origin(session, number)
            item = _get(session, number)
            now = self._db.now(session)
            _refuse_retry(session, item)
            # Out of the way of the unique index before the new one exists.
            item.replaced_by = item.id
            session.flush()
            if Kind(item.kind) is Kind.DELIVERY:
                new = schedule_delivery(session, now, item, item.destination, actor)
                forwards.take_over(session, item, new)
            else:
                new = _again(session, now, item, actor)
            item.replaced_by = new.id
            new.hold = holds.why(session, new)
            audit.record(
                session, now, actor, "retried", workitem=new.id, study=item.study_id, detail=f"replaces {item.id}"
            )
            return new.id

    def release(self, number: int, actor: str) -> str:
        """Let a held item go on with the images as they came first, and with those that are here.

        Only a person may say so, and only for what is known under another study, series or with other pixels, for
        images that were announced and have not come, or for what is shown under another patient where it is to be sent,
        of which each item needs a word of its own: while the images disagree in whose they are, nobody may, but for
        images that go on as they came.

        Returns:
            Why it is still held, for another reason than that which the person knew; empty where it goes on.

        Raises:
            WorklistError: there is no such item, it is not held, or the doubt is one that cannot be released.
        """
        with self._db.write() as session:
            item = _get(session, number)
            if not item.hold:
                raise WorklistError(f"Workitem {number} is not held.")
            now = self._db.now(session)
            unread = holds.doubted(session, item)
            if unread not in {"", item.hold}:  # it arose after the item was held, and the person has not read it
                item.hold, item.changed_at = unread, now
                audit.record(session, now, actor, "held", workitem=item.id, study=item.study_id, detail=unread)
                return unread
            series = sa.select(Series.id).where(Series.study_id == item.study_id)
            session.execute(sa.update(Instance).where(Instance.series_id.in_(series)).values(conflict=""))
            session.execute(sa.update(Series).where(Series.study_id == item.study_id).values(conflict=""))
            session.flush()
            announcements.believe(session, item.study_id)
            if item.hold == holds.shortage(session, item):  # that is what the person has read
                announcements.overrule(session, now, item, actor)
            why = holds.doubt_about(session, item)
            if why and "forwards" not in item.route:
                raise WorklistError(f"Workitem {number} stays held: {why}")
            read = item.hold
            held = sa.select(Workitem).where(Workitem.study_id == item.study_id, Workitem.hold != "")
            for one in session.scalars(held.order_by(Workitem.id).with_for_update()).all():
                if why and one.hold == why and one.route_name == item.route_name and "forwards" in one.route:
                    one.released = why
                if one is item and one.hold == one.mismatch:  # that is what the person has read
                    one.vouched, one.mismatch = one.mismatch, ""
                one.hold = holds.doubted(session, one) or holds.standing(session, one)  # of that nobody has spoken yet
                if one.hold:
                    continue
                one.due_at = one.changed_at = now
                detail = read if one is item else ""
                audit.record(session, now, actor, "released", workitem=one.id, study=one.study_id, detail=detail)
            return item.hold


def _idle() -> sa.Select[Series]:
    """Make the query for the series on which nothing runs; one that goes on is there only if that is amiss."""
    works = sa.and_(WorkitemInput.series_id == Series.id, Workitem.id == WorkitemInput.workitem_id)
    runs = sa.exists().where(works, sa.or_(Workitem.kind != Kind.FORWARD.value, Series.reason == ""))
    return sa.select(Series).where(~runs).order_by(Series.last_received_at.desc())


def _get(session: Session, number: int) -> Workitem:
    item = session.get(Workitem, number, with_for_update=True)
    if item is None:
        raise WorklistError(f"There is no workitem {number}; `dicomai worklist list` shows those there are.")
    return item


def _lock_origin(session: Session, number: int) -> None:
    """Lock what gave the result of an item before the item, as a withdrawal does: one of the two comes first."""
    item = session.get(Workitem, number)
    if item is not None:
        session.refresh(holds.origin_of(session, item), with_for_update=True)


def _refuse_retry(session: Session, item: Workitem) -> None:
    if State(item.state) not in FINAL:
        raise WorklistError(f"Workitem {item.id} is {item.state}; only one that has ended can be tried again.")
    if Kind(item.kind) is Kind.WITHDRAWAL:
        raise WorklistError(f"Workitem {item.id} is a withdrawal: retry its delivery, or call `dicomai recall` again.")
    if item.replaced_by is not None:
        raise WorklistError(f"Workitem {item.id} was replaced by {item.replaced_by}; retry that one.")
    later = session.scalar(sa.select(sa.func.max(Workitem.id)).where(Workitem.supersedes == item.id))
    if later is not None:
        raise WorklistError(f"Workitem {item.id} is superseded by {later}, which has more images; retry that one.")
    if Kind(item.kind) is Kind.DELIVERY:
        origin = holds.origin_of(session, item)
        newer = (
            origin.replaced_by
            or session.scalars(sa.select(Workitem.id).where(Workitem.supersedes == origin.id)).first()
        )
        if newer is not None:
            raise WorklistError(f"The result of workitem {item.id} is outdated by workitem {newer}.")
        gone = withdrawals_of(session, origin) if Kind(origin.kind) is Kind.INFERENCE else []
        if gone:
            raise WorklistError(
                f"The result of workitem {item.id} was withdrawn by workitem {gone[-1].id}; retry workitem {origin.id},"
                " so that a new one is made."
            )
    is_found_here = Kind(holds.origin_of(session, item).kind) is Kind.INFERENCE
    rejected = rejected_input(session, item) if is_found_here else ""
    if rejected:
        raise WorklistError(f"Workitem {item.id} cannot be tried again: {rejected}")


def _again(session: Session, now: datetime, item: Workitem, actor: str) -> Workitem:
    """Make an item like one that has ended, an inference or a forward; its deliveries that wait are ended."""
    deliveries: Sequence[Workitem] = session.scalars(
        sa.select(Workitem)
        .where(
            Workitem.kind == Kind.DELIVERY.value,
            Workitem.result_id == item.result_id,
            Workitem.result_id.is_not(None),
        )
        .with_for_update()
    ).all()
    # Locked in the order in which a delivery does that begins to send at this moment.
    result = session.get(Result, item.result_id, with_for_update=True) if item.result_id is not None else None
    offered = result is not None and result.first_sent_at is not None
    is_found_here = Kind(item.kind) is Kind.INFERENCE
    new = Workitem(
        kind=item.kind,
        state=State.SCHEDULED.value,
        hold="",
        priority=item.priority,
        study_id=item.study_id,
        route=item.route,
        route_name=item.route_name,
        digest=item.digest,
        generation=item.generation + int(offered),
        supersedes=item.id if offered and is_found_here else item.supersedes,
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=item.inputs_again(),
    )
    session.add(new)
    session.flush()
    forwards.hand_on(session, item, new)
    for delivery in deliveries:
        if State(delivery.state) not in FINAL:
            cancel(session, now, delivery, actor, f"Replaced: workitem {item.id} runs again as {new.id}.")
    return new


def _of_item(item: Workitem) -> Entry:
    numbers = ", ".join(dict.fromkeys(f"{i.series.modality} {i.series.description}".strip() for i in item.inputs))
    return Entry(
        id=item.id,
        kind=item.kind,
        state=f"{item.state} (held)" if item.hold else item.state,
        study=item.study.trace,
        series=numbers,
        route=item.route_name,
        destination=item.destination,
        progress=item.progress,
        attempt=item.attempt,
        changed_at=item.changed_at,
        reason=item.hold or item.reason,
    )


def _of_series(series: Series) -> Entry:
    receiving = series.state != SeriesState.COMPLETE
    return Entry(
        id=None,
        kind="series",
        state="RECEIVING" if receiving else "NOT ROUTED",
        study=series.study.trace,
        series=f"{series.modality} {series.description}".strip(),
        route="",
        destination="",
        progress=0,
        attempt=0,
        changed_at=series.last_received_at,
        reason=series.reason or ("Waits until it is complete." if receiving else ""),
    )
