"""Results that no longer hold: which they are, where they went, and the work of withdrawing them there."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.holds import origin_of
from dicomai.database.results import FrozenObject, objects_of
from dicomai.database.tables import Result, Workitem, WorkitemInput
from dicomai.database.transitions import cancel
from dicomai.errors import WorklistError
from dicomai.workitem import FINAL, Kind, State


@dataclass(frozen=True, slots=True)
class Withdrawable:
    """A result, and where it went.

    Attributes:
        item: the inference that gave it.
        trace: the study's name in the log.
        created_at: when it was made.
        objects: of the result.
        sent_to: the destinations that may have any of it.
        waiting: the destinations to which it has still to be sent, in whole or in part.
        withdrawn_from: the destinations that are told, or are to be told, that it no longer holds.
    """

    item: int
    trace: str
    created_at: datetime
    objects: tuple[FrozenObject, ...]
    sent_to: tuple[str, ...]
    waiting: tuple[str, ...]
    withdrawn_from: tuple[str, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """The destinations that may have any of it, and have still to be told."""
        return tuple(name for name in self.sent_to if name not in self.withdrawn_from)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to withdraw, or to keep from being sent."""
        return bool(self.waiting or self.left)


class Withdrawals:
    """Looks for results, ends their deliveries, and schedules that they are withdrawn."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def result_of(self, number: int) -> Withdrawable:
        """Give the result of an inference.

        Raises:
            WorklistError: there is no such inference, or it gave none.
        """
        with self._db.read() as session:
            item = session.get(Workitem, number)
            if item is None or Kind(item.kind) is not Kind.INFERENCE or item.result_id is None:
                raise WorklistError(
                    f"Workitem {number} is no analysis that gave a result; `dicomai worklist` lists them."
                )
            return _withdrawable(session, item)

    def results_of(self, model: str) -> list[Withdrawable]:
        """List the results of a model, of every version, the oldest first."""
        with self._db.read() as session:
            items = session.scalars(
                sa.select(Workitem)
                .where(Workitem.kind == Kind.INFERENCE.value, Workitem.result_id.is_not(None))
                .order_by(Workitem.id)
            )
            return [_withdrawable(session, item) for item in items if item.route.get("model") == model]

    def schedule(self, number: int, actor: str, reason: str) -> int | None:
        """End what has still to be sent of a result, and schedule that it is withdrawn wherever it may be.

        A delivery at work finds its attempt stale; what it had under way may be at the destination, which therefore
        counts among those that are told.

        Args:
            number: of the inference that gave it.
            actor: who withdraws.
            reason: in a sentence.

        Returns:
            The number of the withdrawal; None where nobody is to be told, or all are already.
        """
        with self._db.write() as session:
            origin = session.get_one(Workitem, number, with_for_update=True)
            now = self._db.now(session)
            for delivery in _deliveries(session, origin, lock=True):
                if State(delivery.state) not in FINAL:
                    cancel(session, now, delivery, actor, f"Withdrawn: {reason}")
            session.flush()
            return withdraw(session, now, origin, _withdrawable(session, origin).left, actor, reason)

    def objects(self, number: int) -> list[FrozenObject]:
        """Give the objects of the result of an inference."""
        with self._db.read() as session:
            return objects_of(session, session.get_one(Workitem, number).result_id or 0)


def withdraw(
    session: Session, now: datetime, origin: Workitem, destinations: Sequence[str], actor: str, reason: str
) -> int | None:
    """Write the withdrawal of what an inference gave from some destinations; gives its number, None without any."""
    if not destinations:
        return None
    about: dict[str, Any] = {"workitem": origin.id, "destinations": list(destinations), "reason": reason}
    made = Workitem(
        kind=Kind.WITHDRAWAL.value,
        state=State.SCHEDULED.value,
        hold="",
        priority=0,
        study_id=origin.study_id,
        route={**origin.route, "withdraws": about},
        route_name=origin.route_name,
        digest=origin.digest,
        generation=origin.generation,
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=[
            WorkitemInput(role=i.role, series_id=i.series_id, stack=i.stack, sop_instance_uids=i.sop_instance_uids)
            for i in origin.inputs
        ],
    )
    session.add(made)
    session.flush()
    detail = f"the result of workitem {origin.id}, from {', '.join(destinations)}: {reason}"
    audit.record(session, now, actor, "scheduled", workitem=made.id, study=origin.study_id, detail=detail)
    return made.id


def withdraw_superseded(session: Session, now: datetime, delivery: Workitem, actor: str) -> None:
    """Write the withdrawals of what no longer holds at a destination, now that a result is whole there.

    Those are the results that it supersedes; or itself, where what supersedes it has overtaken it.
    """
    origin = origin_of(session, delivery)
    if Kind(origin.kind) is not Kind.INFERENCE:
        return
    here = delivery.destination
    for newer in session.scalars(sa.select(Workitem).where(Workitem.supersedes == origin.id)):
        if any(one.destination == here and one.state == State.COMPLETED.value for one in _deliveries(session, newer)):
            _withdraw_from(session, now, origin, here, newer, actor)
    number = origin.supersedes
    while number is not None:
        old = session.get_one(Workitem, number)
        _withdraw_from(session, now, old, here, origin, actor)
        number = old.supersedes


def _withdraw_from(
    session: Session, now: datetime, old: Workitem, destination: str, newer: Workitem, actor: str
) -> None:
    if old.result_id is not None and destination in _withdrawable(session, old).left:
        reason = f"The result of workitem {newer.id} has taken its place."
        withdraw(session, now, old, [destination], actor, reason)


def withdrawals_of(session: Session, origin: Workitem) -> list[Workitem]:
    """Give what withdraws, or has withdrawn, the result of an inference."""
    found = sa.select(Workitem).where(
        Workitem.kind == Kind.WITHDRAWAL.value,
        Workitem.digest == origin.digest,
        Workitem.state != State.CANCELED.value,
    )
    return [one for one in session.scalars(found.order_by(Workitem.id)) if _about(one)["workitem"] == origin.id]


def _about(withdrawal: Workitem) -> dict[str, Any]:
    return cast("dict[str, Any]", withdrawal.route["withdraws"])


def _deliveries(session: Session, origin: Workitem, *, lock: bool = False) -> list[Workitem]:
    query = sa.select(Workitem).where(Workitem.kind == Kind.DELIVERY.value, Workitem.result_id == origin.result_id)
    return list(session.scalars((query.with_for_update() if lock else query).order_by(Workitem.id)))


def _withdrawable(session: Session, origin: Workitem) -> Withdrawable:
    deliveries = _deliveries(session, origin)
    told = [name for one in withdrawals_of(session, origin) for name in _about(one)["destinations"]]
    return Withdrawable(
        item=origin.id,
        trace=origin.study.trace,
        created_at=session.get_one(Result, origin.result_id).created_at,
        objects=tuple(objects_of(session, origin.result_id or 0)),
        sent_to=tuple(dict.fromkeys(one.destination for one in deliveries if one.attempt)),
        waiting=tuple(one.destination for one in deliveries if State(one.state) not in FINAL),
        withdrawn_from=tuple(dict.fromkeys(told)),
    )
