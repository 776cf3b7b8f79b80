"""Storage commitments that this node asks for: each a row before it is asked, open until its report is here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.tables import Acceptance, AskedCommitment, ResultObject, Workitem
from dicomai.database.transitions import put_off
from dicomai.database.worklist import Claim, fenced
from dicomai.workitem import State

_ACTOR = "delivery"


class AskedState(StrEnum):
    """How far a transaction is."""

    OPEN = "OPEN"  # asked for, and no report
    REPORTED = "REPORTED"  # the destination has said of every object whether it is committed
    CLOSED = "CLOSED"  # nothing depends on it any more: it was not taken, or what it is about is sent again


@dataclass(frozen=True, slots=True)
class Asked:
    """A transaction that counts for a delivery.

    Attributes:
        is_open: there is no report.
        failures: Failure Reason (0008,1197) by SOP Instance UID of what is not committed; None where none was given.
        age: seconds since it was asked.
    """

    is_open: bool
    failures: Mapping[str, int | None]
    age: float


class AskedCommitments:
    """Transactions, as deliveries and whoever hears reports see them."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def of(self, claim: Claim) -> list[Asked]:
        """Give the transactions that count for a delivery, the oldest first."""
        with self._db.read() as session:
            now = self._db.now(session)
            return [
                Asked(row.state == AskedState.OPEN.value, row.failures, (now - row.asked_at).total_seconds())
                for row in session.scalars(_counting(claim.item))
            ]

    def begin(self, claim: Claim, transaction_uid: str, ae_title: str) -> None:
        """Write down that a destination is about to be asked for all objects of a delivery.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item, now = fenced(session, claim), self._db.now(session)
            session.add(
                AskedCommitment(
                    workitem_id=item.id, transaction_uid=transaction_uid, ae_title=ae_title,
                    state=AskedState.OPEN.value, failures={}, asked_at=now,
                )
            )  # fmt: skip
            _record(session, self._db, item, "commitment requested", f"Transaction {transaction_uid} of {ae_title}.")

    def abandon(self, transaction_uid: str) -> None:
        """Close a transaction that the destination did not take."""
        with self._db.write() as session:
            session.execute(
                sa.update(AskedCommitment)
                .where(AskedCommitment.transaction_uid == transaction_uid)
                .values(state=AskedState.CLOSED.value)
            )

    def report(
        self, ae_title: str, transaction_uid: str, committed: frozenset[str], failed: Mapping[str, int | None]
    ) -> bool:
        """Take a report; what it does not name is not committed. One that came before changes nothing.

        Args:
            ae_title: who reports.
            transaction_uid: of what.
            committed: SOP Instance UIDs.
            failed: Failure Reason by SOP Instance UID.

        Returns:
            Whether that AE was asked so.
        """
        of_it = sa.select(AskedCommitment).where(
            AskedCommitment.transaction_uid == transaction_uid, AskedCommitment.ae_title == ae_title
        )
        with self._db.write() as session:
            row = session.scalars(of_it).first()
            if row is None:
                return False
            # The delivery's row is locked first, as a delivery does that goes to sleep: it sees this, or is woken.
            item = session.scalars(sa.select(Workitem).where(Workitem.id == row.workitem_id).with_for_update()).one()
            session.refresh(row)
            if row.state != AskedState.OPEN.value:
                return True
            objects = (
                sa.select(ResultObject.sop_instance_uid)
                .join(Acceptance, Acceptance.result_object_id == ResultObject.id)
                .where(Acceptance.workitem_id == item.id)
            )
            sound = committed - failed.keys()
            row.failures = {uid: failed.get(uid) for uid in session.scalars(objects) if uid not in sound}
            row.state = AskedState.REPORTED.value
            if item.state == State.IN_PROGRESS.value and item.lease_owner is None:
                item.due_at = self._db.now(session)
            said = f"Transaction {transaction_uid} of {ae_title}: {len(row.failures)} objects not committed."
            _record(session, self._db, item, "commitment answered", said)
            return True

    def sleep(self, claim: Claim, timeout: float, reason: str) -> None:
        """Let a delivery wait for a report, at most until the last transaction is as old as `timeout`, in seconds.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item, now = fenced(session, claim), self._db.now(session)
            rows = session.scalars(_counting(item.id)).all()
            due = rows[-1].asked_at + timedelta(seconds=timeout) if rows else now
            if any(row.state == AskedState.REPORTED.value for row in rows):  # it came at this moment
                due = now
            item.looks += 1
            put_off(session, now, item, claim.owner, (due - now).total_seconds(), reason)


def close(session: Session, workitem: int) -> None:
    """Close the transactions of a delivery."""
    session.execute(
        sa.update(AskedCommitment).where(AskedCommitment.workitem_id == workitem).values(state=AskedState.CLOSED.value)
    )


def _counting(workitem: int) -> sa.Select[AskedCommitment]:
    return (
        sa.select(AskedCommitment)
        .where(AskedCommitment.workitem_id == workitem, AskedCommitment.state != AskedState.CLOSED.value)
        .order_by(AskedCommitment.id)
    )


def _record(session: Session, database: Database, item: Workitem, event: str, detail: str) -> None:
    audit.record(session, database.now(session), _ACTOR, event, workitem=item.id, study=item.study_id, detail=detail)
