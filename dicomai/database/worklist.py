"""The worklist as workers see it: claim under a lease, heartbeat, finish; every step names its attempt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit, holds, withdrawals
from dicomai.database.engine import Database
from dicomai.database.planning import Image, images_of, newest_of
from dicomai.database.rejections import rejected_input
from dicomai.database.results import FrozenObject, keep, left_out, objects_of, outdated, schedule_delivery, wants
from dicomai.database.tables import Acceptance, Instance, Result, ResultObject, Series, Version, Workitem
from dicomai.database.transitions import cancel, complete, move, put_off
from dicomai.errors import StaleAttemptError, WorklistError
from dicomai.workitem import Kind, State


@dataclass(frozen=True, slots=True)
class Claim:
    """An item that a worker has for the time of its lease.

    Attributes:
        item: the workitem's number.
        attempt: the number that fences: a later claim has a higher one.
        trace: the study's name in the log.
        route: the route as planned.
    """

    item: int
    attempt: int
    trace: str
    study_id: int
    route: dict[str, Any]
    digest: str
    generation: int
    destination: str
    owner: str


@dataclass(frozen=True, slots=True)
class JobInput:
    """One input of an inference item: the images that were planned, as they are now."""

    role: str
    stack: str
    images: tuple[Image, ...]


class Worklist:
    """Claims and what comes of them."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def claim(
        self, kind: Kind, owner: str, lease: float, attempts: int, destination: str | None = None
    ) -> Claim | None:
        """Take the next item that is due, or one whose holder has let its lease run out.

        No item is given twice: on PostgreSQL rows are skipped that another claim has locked, on SQLite claims come
        one after another.

        Args:
            kind: what the worker does.
            owner: the worker's name, see `owner_name`.
            lease: seconds until the item may be taken over.
            attempts: after so many the item is ended with a sentence.
            destination: of deliveries, only those that go there.
        """
        with self._db.write() as session:
            now = self._db.now(session)
            while True:
                item = session.scalars(_claimable(kind, now, destination)).first()
                if item is None:
                    return None
                if item.attempt - item.looks < attempts:
                    break
                why = item.reason or "its worker ended without a word"
                cancel(session, now, item, owner, f"Given up after {item.attempt} attempts: {why}")
                session.flush()
            item.attempt += 1
            item.lease_owner = owner
            item.lease_expires = now + timedelta(seconds=lease)
            item.progress = 0
            if not item.hold:  # what is held is looked at again and again, and that is no news
                move(session, now, item, State.IN_PROGRESS, owner, f"attempt {item.attempt}")
            item.reason = ""
            return Claim(
                item.id, item.attempt, item.study.trace, item.study_id, item.route, item.digest,
                item.generation, item.destination, owner,
            )  # fmt: skip

    def heartbeat(self, claim: Claim, lease: float, progress: int | None = None) -> None:
        """Keep the lease, and say how far the work is, in percent.

        Raises:
            StaleAttemptError: the item is no longer this attempt's.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            item.lease_expires = self._db.now(session) + timedelta(seconds=lease)
            if progress is not None:
                item.progress = max(0, min(100, progress))

    def inputs(self, claim: Claim) -> list[JobInput]:
        """Give the planned images of an inference item, each in the version that counts now."""
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            return [
                JobInput(i.role, i.stack, tuple(images_of(session, i.series_id, frozenset(i.sop_instance_uids))))
                for i in item.inputs
            ]

    def newest_image(self, claim: Claim) -> Image:
        """Give the image that came last of those that a result is made of: its patient's and study's attributes count.

        Args:
            claim: an inference item, or a delivery of what one gave.
        """
        with self._db.read() as session:
            return newest_image(session, session.get_one(Workitem, claim.item))

    def doubt(self, study_id: int) -> str:
        """Say in a sentence why it is in doubt whose images a study holds; empty where it is not."""
        with self._db.read() as session:
            return holds.doubt(session, study_id)

    def why_wait(self, claim: Claim) -> str:
        """Say in a sentence why an item has to wait for a person; empty where it need not."""
        with self._db.read() as session:
            return holds.why(session, session.get_one(Workitem, claim.item))

    def predecessors(self, claim: Claim) -> list[FrozenObject]:
        """Give the objects of the last result that this one supersedes and that may have been sent.

        Where a report said since then that there is no newer one, it is superseded too, and comes first.
        """
        with self._db.read() as session:
            found: list[FrozenObject] = []
            number = session.get_one(Workitem, claim.item).supersedes
            while number is not None:
                old = session.get_one(Workitem, number)
                result = session.get(Result, old.result_id) if old.result_id is not None else None
                if result is not None and result.first_sent_at is not None:
                    found += objects_of(session, result.id)
                    if State(old.state) is State.COMPLETED:
                        break
                number = old.supersedes
            return found

    def series_numbers(self, study_id: int) -> list[int]:
        """List the Series Numbers of this node's results in a study."""
        with self._db.read() as session:
            query = sa.select(ResultObject.series_number).join(Workitem, Workitem.result_id == ResultObject.result_id)
            return list(session.scalars(query.where(Workitem.study_id == study_id).distinct()))

    def one_of_each_series(self, study_id: int) -> list[str]:
        """Give the key of one instance of each series of a study, images or not."""
        with self._db.read() as session:
            query = (
                sa.select(sa.func.min(Version.key))
                .join(Instance, Instance.id == Version.instance_id)
                .join(Series, Series.id == Instance.series_id)
                .where(Series.study_id == study_id)
                .group_by(Series.id)
            )
            return list(session.scalars(query))

    def finish_inference(
        self,
        claim: Claim,
        objects: Sequence[FrozenObject],
        destinations: Sequence[str],
        wanted: Mapping[str, Sequence[str]] | None = None,
        *,
        remark: str = "",
    ) -> None:
        """Complete an inference item and schedule its deliveries, in one transaction.

        Args:
            claim: the inference.
            objects: what it gave.
            destinations: where it is sent.
            wanted: the outputs that go to a destination; all of them to one that it does not name. A delivery for which
                there is nothing ends at once, with a sentence.
            remark: what is to be known of it, in a sentence.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            now = self._db.now(session)
            keep(session, now, item, objects)
            complete(session, now, item, claim.owner, remark)
            for name in destinations:
                schedule_delivery(session, now, item, name, claim.owner, (wanted or {}).get(name))

    def result(self, claim: Claim) -> list[FrozenObject]:
        """Give the objects that a delivery has still to send, in their order."""
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            taken = set(
                session.scalars(sa.select(Acceptance.result_object_id).where(Acceptance.workitem_id == item.id))
            )
            taken |= outdated(session, item)
            return [o for o in objects_of(session, item.result_id or 0) if o.id not in taken and wants(item, o.output)]

    def whole(self, claim: Claim) -> list[FrozenObject]:
        """Give all objects of the result of a delivery, also those that go to other destinations."""
        with self._db.read() as session:
            return objects_of(session, session.get_one(Workitem, claim.item).result_id or 0)

    def begin_sending(
        self, claim: Claim, seen: Sequence[FrozenObject], keys: dict[int, str], max_age: float | None = None
    ) -> bool:
        """Settle which bytes of a result are sent, before the first of them is.

        Several deliveries of one result may come here at once; the first decides for all.

        Args:
            claim: the delivery.
            seen: the objects as the caller read them.
            keys: new bytes for some of them, by object number.
            max_age: seconds; an older result is not begun with.

        Returns:
            False if the bytes were settled otherwise meanwhile, or a doubt arose: look at it all again.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
            WorklistError: its images were rejected, or it is too old, and the destination has none of it yet; nothing
                was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            result = session.get_one(Result, item.result_id, with_for_update=True)
            # That its images were rejected, or are old, is no reason to keep back what withdraws a result, nor the
            # images themselves: their source rejects them wherever they are.
            is_found_here = Kind(holds.origin_of(session, item).kind) is Kind.INFERENCE
            why_not = rejected_input(session, item) if is_found_here else ""
            is_old = max_age is not None and self._db.now(session) - result.created_at > timedelta(seconds=max_age)
            if is_old and is_found_here:
                why_not = why_not or f"it is older than max_age, {max_age:g} s; raise that to send it, and retry."
            accepted = (  # by this delivery, or by one that a person had retried: it is the same result there
                sa.select(Acceptance.workitem_id)
                .join(Workitem, Workitem.id == Acceptance.workitem_id)
                .where(Workitem.result_id == item.result_id, Workitem.destination == item.destination)
            )
            if why_not and session.scalars(accepted.limit(1)).first() is None:  # never half a result
                raise WorklistError(f"The result of workitem {item.id} is not sent: {why_not}")
            if holds.why(session, item):
                return False
            now_there = {o.id: o.key for o in objects_of(session, result.id)}
            if any(now_there[o.id] != o.key for o in seen) or (keys and result.first_sent_at is not None):
                return False
            for number, key in keys.items():
                session.get_one(ResultObject, number).key = key
            now = self._db.now(session)
            if result.first_sent_at is None:
                result.first_sent_at = now
            if item.mismatch:  # which has passed, else this would not be called
                detail = f"attempt {claim.attempt}"
                audit.record(session, now, claim.owner, "let go", workitem=item.id, study=item.study_id, detail=detail)
            item.hold = item.mismatch = ""
            return True

    def was_sent(self, claim: Claim) -> bool:
        """Tell whether any object of a delivery's result may be at a destination."""
        with self._db.read() as session:
            result_id = session.get_one(Workitem, claim.item).result_id
            return session.get_one(Result, result_id).first_sent_at is not None

    def accepted(self, claim: Claim, object_id: int, status: int, comment: str) -> None:
        """Write down that the destination has one object of a delivery.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            row = Acceptance(
                workitem_id=item.id,
                result_object_id=object_id,
                at=self._db.now(session),
                status=status,
                comment=comment,
            )
            session.merge(row)
            item.looked_at, item.unseen = None, 0.0  # what is asked for is another thing now

    def finish_delivery(self, claim: Claim, *, withdraw_superseded: bool = False) -> None:
        """Complete a delivery.

        Args:
            claim: the delivery.
            withdraw_superseded: have the results withdrawn there that this one has taken the place of.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            rows = session.execute(
                sa.select(Acceptance.comment, Acceptance.found)
                .where(Acceptance.workitem_id == item.id)
                .order_by(Acceptance.result_object_id)
            ).all()
            warnings = Counter(text for row in rows for text in row if text)
            said = (text if count == 1 else f"{text} ({count} objects)" for text, count in warnings.items())
            now, left = self._db.now(session), left_out(session, item)
            if left and not rows:
                cancel(session, now, item, claim.owner, left)
                return
            complete(session, now, item, claim.owner, "; ".join(filter(None, (left, *said))))
            if withdraw_superseded:
                withdrawals.withdraw_superseded(session, now, item, claim.owner)

    def postpone(self, claim: Claim, seconds: float, reason: str, *, counts: bool = True) -> None:
        """Let the item wait for another attempt.

        Args:
            claim: the item.
            seconds: until then.
            reason: in a sentence.
            counts: this one is one of those after which the item is given up.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            item.looked_at = None  # a destination that failed meanwhile could not be asked
            item.looks += 0 if counts else 1
            put_off(session, self._db.now(session), item, claim.owner, seconds, reason)

    def hold(self, claim: Claim, reason: str) -> None:
        """Let the item wait for a person.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            put_off(session, self._db.now(session), item, claim.owner, 0.0, reason)
            item.hold = reason

    def fail(
        self,
        claim: Claim,
        reason: str,
        report: Sequence[FrozenObject] = (),
        destinations: Sequence[str] = (),
        wanted: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """End the item without a result, for the reason given in a sentence.

        Args:
            claim: the item.
            reason: in a sentence.
            report: what tells those who wait for a result that there is none; its deliveries are scheduled.
            destinations: where it is sent.
            wanted: the outputs that go to a destination, as for `finish_inference`.

        Raises:
            StaleAttemptError: the item is no longer this attempt's; nothing was written.
        """
        with self._db.write() as session:
            item = fenced(session, claim)
            now = self._db.now(session)
            if report:
                keep(session, now, item, report)
            cancel(session, now, item, claim.owner, reason)
            for name in destinations if report else ():
                schedule_delivery(session, now, item, name, claim.owner, (wanted or {}).get(name))

    def owners(self) -> list[str]:
        """List who holds a lease."""
        with self._db.read() as session:
            return list(
                session.scalars(sa.select(Workitem.lease_owner).where(Workitem.lease_owner.is_not(None)).distinct())
            )

    def expire(self, owner: str) -> int:
        """Let go of every lease of a worker that is known to be gone; gives how many."""
        with self._db.write() as session:
            now = self._db.now(session)
            items = session.scalars(sa.select(Workitem).where(Workitem.lease_owner == owner).with_for_update()).all()
            for item in items:
                item.lease_owner = item.lease_expires = None
                item.due_at = now
                audit.record(session, now, owner, "let go", workitem=item.id, study=item.study_id)
            return len(items)


def _claimable(kind: Kind, now: datetime, destination: str | None) -> sa.Select[Workitem]:
    scheduled = sa.and_(Workitem.state == State.SCHEDULED.value, Workitem.due_at <= now)
    waiting = sa.and_(Workitem.state == State.IN_PROGRESS.value, Workitem.lease_owner.is_(None), Workitem.due_at <= now)
    abandoned = sa.and_(Workitem.state == State.IN_PROGRESS.value, Workitem.lease_expires < now)
    query = sa.select(Workitem).where(
        Workitem.kind == kind.value,
        # A delivery that is held for a mismatch alone is asked again by and by whether that has passed.
        Workitem.hold.in_(["", Workitem.mismatch]) if kind is Kind.DELIVERY else Workitem.hold == "",
        sa.or_(scheduled, waiting, abandoned),
    )
    if destination is not None:
        query = query.where(Workitem.destination == destination)
    return query.order_by(Workitem.priority, Workitem.due_at, Workitem.id).limit(1).with_for_update(skip_locked=True)


def newest_image(session: Session, item: Workitem) -> Image:
    """Give the image that came last of those that an item, or the result that it delivers, is about."""
    wanted: dict[int, set[str]] = {}
    for given in holds.origin_of(session, item).inputs:
        wanted.setdefault(given.series_id, set()).update(given.sop_instance_uids)
    return newest_of(session, wanted)


def fenced(session: Session, claim: Claim) -> Workitem:
    """Give the row of a claim, locked.

    Raises:
        StaleAttemptError: the item is no longer this attempt's.
    """
    item = session.scalars(
        sa.select(Workitem)
        .where(
            Workitem.id == claim.item,
            Workitem.attempt == claim.attempt,
            Workitem.state == State.IN_PROGRESS.value,
            Workitem.lease_owner == claim.owner,
        )
        .with_for_update()
    ).first()
    if item is None:
        raise StaleAttemptError(f"Attempt {claim.attempt} of workitem {claim.item} is over; it changes nothing.")
    return item
