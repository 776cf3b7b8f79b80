"""Results that no longer hold: which they are, where they went, and the work of withdrawing them there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.holds import origin_of
from dicomai.database.results import FrozenObject, objects_of, wants
from dicomai.database.tables import Acceptance, Result, Workitem
from dicomai.database.transitions import cancel, move
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
        withdrawn_from: the destinations that were told that it no longer holds.
        telling: the destinations that are still to be told, and will be.
        is_recalled: a person has withdrawn it; it is never sent again.
    """

    item: int
    trace: str
    created_at: datetime
    objects: tuple[FrozenObject, ...]
    sent_to: tuple[str, ...]
    waiting: tuple[str, ...]
    withdrawn_from: tuple[str, ...]
    telling: tuple[str, ...]
    is_recalled: bool

    @property
    def left(self) -> tuple[str, ...]:
        """The destinations that may have any of it, and whom nothing tells."""
        return tuple(name for name in self.sent_to if name not in {*self.withdrawn_from, *self.telling})

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

    def schedule(self, number: int, actor: str, reason: str) -> list[int]:
        """End what has still to be sent of a result, and schedule that it is withdrawn wherever it may be.

        A delivery at work finds its attempt stale; what it had under way may be at the destination, which therefore
        counts among those that are told.

        Args:
            number: of the inference that gave it.
            actor: who withdraws.
            reason: in a sentence.

        Returns:
            The numbers of the withdrawals; none where nobody is to be told, or all are already.
        """
        with self._db.write() as session:
            origin = session.get_one(Workitem, number, with_for_update=True)
            now = self._db.now(session)
            for delivery in _deliveries(session, origin, lock=True):
                if State(delivery.state) not in FINAL:
                    cancel(session, now, delivery, actor, f"Withdrawn: {reason}")
            session.flush()
            here = _withdrawable(session, origin)
            made = [one for name in here.left for one in _withdraw_from(session, now, origin, name, actor, reason)]
            if not here.is_recalled and not made:
                _note_recall(session, now, origin, actor, reason)
            return made

    def objects(self, withdraws: dict[str, Any]) -> list[FrozenObject]:
        """Give the objects that a withdrawal names, by what its route says of it."""
        with self._db.read() as session:
            origin = session.get_one(Workitem, int(withdraws["workitem"]))
            named = set(withdraws["objects"])
            return [one for one in objects_of(session, origin.result_id or 0) if one.id in named]

    def study_of(self, number: int) -> str:
        """Give the Study Instance UID of an item."""
        with self._db.read() as session:
            return session.get_one(Workitem, number).study.study_instance_uid


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
            _supersede(session, now, origin, here, newer, actor)
    number = origin.supersedes
    while number is not None:
        old = session.get_one(Workitem, number)
        _supersede(session, now, old, here, origin, actor)
        number = old.supersedes


def withdrawals_of(session: Session, origin: Workitem) -> list[Workitem]:
    """Give what withdraws, or has withdrawn, the result of an inference."""
    found = sa.select(Workitem).where(
        Workitem.kind == Kind.WITHDRAWAL.value,
        Workitem.digest == origin.digest,
        Workitem.state != State.CANCELED.value,
    )
    return [one for one in session.scalars(found.order_by(Workitem.id)) if _about(one)["workitem"] == origin.id]


def _supersede(session: Session, now: datetime, old: Workitem, destination: str, newer: Workitem, actor: str) -> None:
    if old.result_id is None:
        return
    here = _withdrawable(session, old)
    if destination in here.left and destination not in here.waiting:  # else when the rest of it is there
        reason = f"The result of workitem {newer.id} has taken its place."
        for _ in _withdraw_from(session, now, old, destination, actor, reason):
            pass


def _withdraw_from(
    session: Session, now: datetime, origin: Workitem, destination: str, actor: str, reason: str
) -> Iterator[int]:
    """Write the withdrawals of a result from one destination; gives their numbers.

    What it has accepted is one, and what it may have, because an answer was lost, another: an archive may refuse a note
    that names what it does not have.
    """
    deliveries = [one for one in _deliveries(session, origin) if one.destination == destination]
    wanted = [o for o in objects_of(session, origin.result_id or 0) if any(wants(one, o.output) for one in deliveries)]
    numbers = [one.id for one in deliveries]
    taken = set(session.scalars(sa.select(Acceptance.result_object_id).where(Acceptance.workitem_id.in_(numbers))))
    for objects in ([o.id for o in wanted if o.id in taken], [o.id for o in wanted if o.id not in taken]):
        if objects:
            made = _write(session, now, origin, {"destinations": [destination], "objects": objects, "reason": reason})
            detail = f"the result of workitem {origin.id}, from {destination}: {reason}"
            audit.record(session, now, actor, "scheduled", workitem=made.id, study=origin.study_id, detail=detail)
            yield made.id


def _note_recall(session: Session, now: datetime, origin: Workitem, actor: str, reason: str) -> None:
    """Write down that a result was withdrawn of which nobody has to be told: it is not to be sent by a retry."""
    made = _write(session, now, origin, {"destinations": [], "objects": [], "reason": reason})
    move(session, now, made, State.IN_PROGRESS, actor)
    move(session, now, made, State.COMPLETED, actor, f"The result of workitem {origin.id} was sent nowhere. {reason}")
    made.progress = 100


def _write(session: Session, now: datetime, origin: Workitem, about: dict[str, Any]) -> Workitem:
    made = Workitem(
        kind=Kind.WITHDRAWAL.value,
        state=State.SCHEDULED.value,
        hold="",
        priority=0,
        study_id=origin.study_id,
        route={**origin.route, "withdraws": {"workitem": origin.id, **about}},
        route_name=origin.route_name,
        digest=origin.digest,
        generation=origin.generation,
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=origin.inputs_again(),
    )
    session.add(made)
    session.flush()
    return made


def _about(withdrawal: Workitem) -> dict[str, Any]:
    return cast("dict[str, Any]", withdrawal.route["withdraws"])


def _deliveries(session: Session, origin: Workitem, *, lock: bool = False) -> list[Workitem]:
    if origin.result_id is None:
        return []
    query = sa.select(Workitem).where(Workitem.kind == Kind.DELIVERY.value, Workitem.result_id == origin.result_id)
    return list(session.scalars((query.with_for_update() if lock else query).order_by(Workitem.id)))


def _withdrawable(session: Session, origin: Workitem) -> Withdrawable:
    deliveries = _deliveries(session, origin)
    withdrawals = withdrawals_of(session, origin)
    telling, told = _told(session, withdrawals)
    return Withdrawable(
        item=origin.id,
        trace=origin.study.trace,
        created_at=session.get_one(Result, origin.result_id).created_at,
        objects=tuple(objects_of(session, origin.result_id or 0)),
        sent_to=tuple(dict.fromkeys(one.destination for one in deliveries if one.attempt)),
        waiting=tuple(one.destination for one in deliveries if State(one.state) not in FINAL),
        withdrawn_from=tuple(name for name in told if name not in telling),
        telling=telling,
        is_recalled=bool(withdrawals),
    )


def _told(session: Session, withdrawals: Sequence[Workitem]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the destinations that will be told, and those that were; one that has refused a note is neither."""
    telling, told = dict[str, None](), dict[str, None]()
    for one in withdrawals:
        if State(one.state) not in FINAL:
            telling |= dict.fromkeys(_about(one)["destinations"])
        for delivery in _deliveries(session, one):
            if delivery.replaced_by is None and State(delivery.state) is not State.CANCELED:
                (told if State(delivery.state) is State.COMPLETED else telling)[delivery.destination] = None
    return tuple(telling), tuple(told)
