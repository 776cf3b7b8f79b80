"""What deliveries alone need of the worklist: whether results are there still, and what is said while nobody is."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.tables import Acceptance, Workitem
from dicomai.database.transitions import cancel
from dicomai.database.worklist import Claim, FrozenObject, fenced, objects_of, put_off
from dicomai.workitem import Kind, State


class Deliveries:
    """Deliveries, beside the steps that every workitem takes."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def now(self) -> datetime:
        """Ask the database's clock."""
        with self._db.read() as session:
            return self._db.now(session)

    def taken(self, claim: Claim) -> tuple[list[FrozenObject], float]:
        """Give the objects that the destination has accepted, in their order, and seconds since the last of them."""
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            rows = session.scalars(sa.select(Acceptance).where(Acceptance.workitem_id == item.id)).all()
            if not rows:
                return [], 0.0
            numbers = {row.result_object_id for row in rows}
            since = self._db.now(session) - max(row.at for row in rows)
            return [o for o in objects_of(session, item.result_id or 0) if o.id in numbers], since.total_seconds()

    def set_back(self, claim: Claim, seconds: float, reason: str, most: int, lost: Sequence[int] = ()) -> bool:
        """Let a delivery wait for another attempt after what is borne a few times only; end it after the last.

        Args:
            claim: the delivery.
            seconds: until the next attempt.
            reason: in a sentence.
            most: so many times in all.
            lost: the numbers of objects that the destination accepted and has no more; they are sent again.

        Returns:
            False if it has ended.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            now = self._db.now(session)
            item.setbacks += 1
            session.execute(
                sa.delete(Acceptance).where(
                    Acceptance.workitem_id == item.id, Acceptance.result_object_id.in_(list(lost))
                )
            )
            if item.setbacks >= most:
                cancel(session, now, item, claim.owner, f"Given up after {item.setbacks} times: {reason}")
                return False
            put_off(session, now, item, claim.owner, seconds, reason)
            return True

    def look_again(self, claim: Claim, seconds: float, reason: str) -> None:
        """Let a delivery of which all is accepted wait until it is asked for again; that is no attempt to send.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            item.looks += 1
            put_off(session, self._db.now(session), item, claim.owner, seconds, reason)

    def explain(self, destination: str, actor: str, reason: str, event: str = "") -> None:
        """Say of all deliveries that have not begun why they wait.

        Args:
            destination: where they go.
            actor: who says it.
            reason: in a sentence; empty when it has passed.
            event: for the audit, which has one row for all of them; none if empty.
        """
        with self._db.write() as session:
            session.execute(
                sa.update(Workitem)
                .where(
                    Workitem.kind == Kind.DELIVERY.value,
                    Workitem.destination == destination,
                    Workitem.state == State.SCHEDULED.value,
                )
                .values(reason=reason)
            )
            if event:
                detail = f"{destination}: {reason}" if reason else destination
                audit.record(session, self._db.now(session), actor, event, detail=detail)
