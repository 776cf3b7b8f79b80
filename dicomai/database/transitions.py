"""Moves of a workitem from state to state: legal ones only, each with its audit row."""

from datetime import datetime

from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.tables import Workitem
from dicomai.errors import WorklistError
from dicomai.workitem import State, is_legal


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


def cancel(session: Session, now: datetime, item: Workitem, actor: str, reason: str) -> None:
    """End an item without a result; a worker that has it finds its attempt stale."""
    if State(item.state) is State.SCHEDULED:
        move(session, now, item, State.IN_PROGRESS, actor)  # UPS knows no direct way (PS3.4 CC.1.1)
    move(session, now, item, State.CANCELED, actor, reason)
    item.lease_owner = item.lease_expires = None
    item.hold = ""
