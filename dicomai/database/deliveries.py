"""What deliveries alone need of the worklist: whether results are there still, and what is said while nobody is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from dicomai.database import audit, commitments_asked, holds
from dicomai.database.engine import Database
from dicomai.database.results import FrozenObject, objects_of
from dicomai.database.tables import Acceptance, Result, Workitem
from dicomai.database.transitions import cancel, put_off
from dicomai.database.worklist import Claim, fenced
from dicomai.workitem import Kind, State


@dataclass(frozen=True, slots=True)
class Behind:
    """What a result was made from, and how old it is.

    Attributes:
        series: UIDs of study and series of each input, and the number of its images.
        age: seconds since the result was there.
    """

    series: tuple[tuple[str, str, int], ...]
    age: float


class Deliveries:
    """Deliveries, beside the steps that every workitem takes."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def now(self) -> datetime:
        """Ask the database's clock."""
        with self._db.read() as session:
            return self._db.now(session)

    def taken(self, claim: Claim, unsettled: int | None = None) -> list[FrozenObject]:
        """Give the objects that the destination has accepted, in their order.

        Args:
            claim: the delivery.
            unsettled: only those accepted with this status of which nobody has looked how they were filed.
        """
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            query = sa.select(Acceptance.result_object_id).where(Acceptance.workitem_id == item.id)
            if unsettled is not None:
                query = query.where(Acceptance.status == unsettled, Acceptance.found.is_(None))
            numbers = set(session.scalars(query))
            return [o for o in objects_of(session, item.result_id or 0) if o.id in numbers]

    def found(self, claim: Claim, found: Mapping[int, str]) -> None:
        """Write down how the destination has filed objects that it accepted.

        Args:
            claim: the delivery.
            found: by the object's number; empty where it is filed as it was sent.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            for number, text in found.items():
                session.get_one(Acceptance, (item.id, number)).found = text

    def unseen(self, claim: Claim) -> float:
        """Give the seconds in which what is to be there, or was accepted, was asked for and not shown.

        Neither the time in which the destination could not be asked counts, nor that in which nobody did.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            now = self._db.now(session)
            if item.looked_at is not None:
                # Up to when it was to be asked again; a node that was killed on a look has not set that.
                item.unseen += max(0.0, (min(now, item.due_at) - item.looked_at).total_seconds())
            item.looked_at = now
            return item.unseen

    def behind(self, claim: Claim) -> Behind:
        """Say what a delivery's result was made from."""
        with self._db.read() as session:
            item, now = session.get_one(Workitem, claim.item), self._db.now(session)
            series = tuple(
                (given.series.study.study_instance_uid, given.series.series_instance_uid, len(given.sop_instance_uids))
                for given in holds.origin_of(session, item).inputs
            )
            age = now - session.get_one(Result, item.result_id).created_at
            return Behind(series, age.total_seconds())

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
            item.looked_at, item.unseen = None, 0.0
            commitments_asked.close(session, item.id)  # what they say is of objects that may be sent again
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

    def mismatched(self, claim: Claim, pauses: tuple[float, float], said: str) -> bool:
        """Hold a delivery whose destination shows its study as another patient's, unless a person vouched for that.

        Args:
            claim: the delivery, of which nothing is accepted yet.
            pauses: the least and the most seconds until the destination is asked again, which is no attempt to send; as
                long as it is held already, between them.
            said: in a sentence that is the same as long as the same patient is shown.

        Returns:
            False if it goes on.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            if item.vouched == said:
                return False
            now, (least, most) = self._db.now(session), pauses
            item.looks += 1
            why = holds.why(session, item) or said
            if item.hold == item.mismatch == why:  # nothing is new, and nothing of it in the audit
                held = (now - item.changed_at).total_seconds()
                item.reason = why
                item.due_at = now + timedelta(seconds=min(max(least, held), most))
                item.lease_owner = item.lease_expires = None
                return True
            item.hold, item.mismatch = why, said
            put_off(session, now, item, claim.owner, least, said)
            return True

    def orphaned(self, known: Sequence[str], actor: str) -> int:
        """Say of deliveries that nobody works off that their destination is not in the configuration; gives how many.

        Args:
            known: the destinations that there are.
            actor: who says it.
        """
        with self._db.write() as session:
            open_ones = session.scalars(
                sa.select(Workitem).where(
                    Workitem.kind == Kind.DELIVERY.value,
                    Workitem.state.in_([State.SCHEDULED.value, State.IN_PROGRESS.value]),
                    Workitem.destination.not_in(list(known)),
                )
            ).all()
            now = self._db.now(session)
            for item in open_ones:
                said = f"Destination '{item.destination}' is not in the configuration: add it, or cancel this item."
                if item.reason != said:
                    item.reason = said
                    audit.record(session, now, actor, "orphaned", workitem=item.id, study=item.study_id, detail=said)
            return len(open_ones)

    def explain(self, destination: str, actor: str, reason: str, event: str = "", begun: Sequence[int] = ()) -> None:
        """Say of all deliveries that have not begun why they wait, and let those go on that have.

        Args:
            destination: where they go.
            actor: who says it.
            reason: in a sentence; empty when it has passed.
            event: for the audit, which has one row for all of them; none if empty.
            begun: the numbers of deliveries that had begun, and wait for what has passed: they go on at once, and each
                says until then what it met with.
        """
        with self._db.write() as session:
            if begun:
                waiting = sa.and_(
                    Workitem.id.in_(begun),
                    Workitem.state == State.IN_PROGRESS.value,
                    Workitem.lease_owner.is_(None),
                )
                session.execute(sa.update(Workitem).where(waiting).values(due_at=self._db.now(session)))
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
