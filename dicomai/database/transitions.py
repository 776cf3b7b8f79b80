"""Moves of a workitem from state to state: legal ones only, each with its audit row."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.tables import Acceptance, Workitem
from dicomai.errors import WorklistError
from dicomai.workitem import FINAL, Kind, State, is_legal


def move(session: Session, now: datetime, item: Workitem, state: State, actor: str, reason: str = "") -> None:
    """Move an item to a state.

    Raises:
        WorklistError: UPS does not allow it.
    """
    before = State(item.state)
    if not is_legal(before, state):
        raise WorklistError(f"Workitem {item.id} is {before}; it cannot become {state}.")
    item.state = state.value
    item.reason = reason
    item.changed_at = now
    audit.record(session, now, actor, state.value, workitem=item.id, study=item.study_id, detail=reason)


def put_off(session: Session, now: datetime, item: Workitem, actor: str, seconds: float, reason: str) -> None:
    """Let an item that is under way wait, without a lease."""
    move(session, now, item, State.IN_PROGRESS, actor, reason)
    item.due_at = now + timedelta(seconds=seconds)
    item.lease_owner = item.lease_expires = None


def complete(session: Session, now: datetime, item: Workitem, actor: str, remark: str = "") -> None:
    """End an item with a result."""
    move(session, now, item, State.COMPLETED, actor, remark)
    item.progress = 100
    item.hold = ""  # a doubt that arose meanwhile holds the deliveries
    item.lease_owner = item.lease_expires = None


def cancel(session: Session, now: datetime, item: Workitem, actor: str, reason: str) -> None:
    """End an item without a result; a worker that has it finds its attempt stale."""
    if State(item.state) is State.SCHEDULED:
        move(session, now, item, State.IN_PROGRESS, actor)  # UPS knows no direct way (PS3.4 CC.1.1)
    move(session, now, item, State.CANCELED, actor, reason)
    item.lease_owner = item.lease_expires = None
    item.hold = ""


def cancel_unsent(session: Session, now: datetime, result_id: int, actor: str, reason: str) -> list[int]:
    """End the deliveries of a result of which nothing was sent; gives their numbers."""
    unsent = session.scalars(
        sa.select(Workitem)
        .where(
            Workitem.kind == Kind.DELIVERY.value,
            Workitem.result_id == result_id,
            Workitem.state.not_in([state.value for state in FINAL]),
            Workitem.lease_owner.is_(None),
            ~sa.exists().where(Acceptance.workitem_id == Workitem.id),
        )
        .with_for_update()  # one that is claimed at this moment is being sent, and goes on: never half a result
    ).all()
    for delivery in unsent:
        cancel(session, now, delivery, actor, reason)
    return [delivery.id for delivery in unsent]
