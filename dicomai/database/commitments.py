"""Requests for storage commitment, each a row until its answer has reached the requestor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.rejections import is_withdrawn
from dicomai.database.tables import Commitment, Instance, Series, Version

_ACTOR = "receiver"
_AT_ONCE = 500  # parameters in one statement

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


class CommitmentState(StrEnum):
    """How far a request is."""

    OPEN = "OPEN"  # the requestor is still to be told
    REPORTED = "REPORTED"  # the requestor has confirmed that it was told
    GIVEN_UP = "GIVEN UP"  # it could not be told for days; the reason says why


@dataclass(frozen=True, slots=True)
class OpenCommitment:
    """A request that waits for its answer.

    Attributes:
        attempt: the number that fences: a later claim, or the same request come again, has a higher one.
        is_duplicate: its transaction UID was in use for other instances.
        age: since it was asked.
    """

    id: int
    transaction_uid: str
    calling_ae: str
    references: tuple[Reference, ...]
    attempt: int
    is_duplicate: bool
    age: timedelta


@dataclass(frozen=True, slots=True)
class Held:
    """An instance that is here, in the version that counts.

    Attributes:
        key: of its file.
        digest: SHA-256 of its transfer syntax and data set, as they were received.
        is_contradicted: it came again with other content, so that it is unclear which one is meant.
        is_withdrawn: a rejection note withdraws it, so that it is not handed out.
    """

    sop_class_uid: str
    key: str
    digest: str
    is_contradicted: bool
    is_withdrawn: bool


class Commitments:
    """Requests, their claims, and what they ask about."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def ask(
        self, calling_ae: str, transaction_uid: str, references: Sequence[Reference], lease: float
    ) -> OpenCommitment:
        """Write a request down; the same one come again is opened anew.

        Args:
            calling_ae: who asks.
            transaction_uid: what they call it.
            references: what they ask about.
            lease: seconds for which the caller has it to itself.
        """
        with self._db.write() as session:
            now = self._db.now(session)
            known = session.scalars(
                sa.select(Commitment)
                .where(Commitment.calling_ae == calling_ae, Commitment.transaction_uid == transaction_uid)
                .order_by(Commitment.id)
                .with_for_update()
            ).all()
            wanted = sorted(set(references))
            row = next((one for one in known if sorted(map(tuple, one.references)) == [*wanted]), None)
            if row is None:
                row = Commitment(
                    transaction_uid=transaction_uid,
                    calling_ae=calling_ae,
                    references=[list(one) for one in wanted],
                    duplicate=bool(known),
                    attempt=0,
                )
                session.add(row)
            row.state, row.reason = CommitmentState.OPEN.value, ""
            row.attempt += 1
            row.requested_at, row.due_at = now, now + timedelta(seconds=lease)
            session.flush()
            _record(session, now, row, "commitment asked for", f"{len(wanted)} instances.")
            return _opened(row, now)

    def recover(self) -> None:
        """Take up what a process had that ended without warning; call it before the first request comes."""
        with self._db.write() as session:
            left = sa.update(Commitment).where(Commitment.state == CommitmentState.OPEN.value)
            session.execute(left.values(due_at=self._db.now(session)))

    def claim(self, lease: float) -> OpenCommitment | None:
        """Take the next request whose time has come; its time comes again when the lease is over."""
        with self._db.read() as session:
            if session.scalars(_due(self._db.now(session))).first() is None:
                return None
        with self._db.write() as session:
            now = self._db.now(session)
            row = session.scalars(_due(now).with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            row.attempt += 1
            row.due_at = now + timedelta(seconds=lease)
            return _opened(row, now)

    def keep(self, one: OpenCommitment, lease: float) -> None:
        """Keep a claim for longer."""
        with self._db.write() as session:
            until = self._db.now(session) + timedelta(seconds=lease)
            session.execute(sa.update(Commitment).where(*_fence(one)).values(due_at=until))

    def reported(self, one: OpenCommitment, detail: str) -> None:
        """Close a request: the requestor has been told."""
        self._end(one, CommitmentState.REPORTED, "commitment reported", detail)

    def give_up(self, one: OpenCommitment, reason: str) -> None:
        """Close a request whose requestor could not be told."""
        self._end(one, CommitmentState.GIVEN_UP, "commitment given up", reason)

    def postpone(self, one: OpenCommitment, seconds: float, reason: str) -> None:
        """Let a request wait for another attempt."""
        with self._db.write() as session:
            now = self._db.now(session)
            row = session.scalars(sa.select(Commitment).where(*_fence(one)).with_for_update()).first()
            if row is not None:
                row.due_at, row.reason = now + timedelta(seconds=seconds), reason
                _record(session, now, row, "commitment not reported yet", reason)

    def held(self, sop_instance_uids: Sequence[str]) -> dict[str, Held]:
        """Look up instances by SOP Instance UID; those that are not here are left out."""
        found: dict[str, Held] = {}
        with self._db.read() as session:
            for start in range(0, len(sop_instance_uids), _AT_ONCE):
                some = sop_instance_uids[start : start + _AT_ONCE]
                query = sa.select(Instance.id).join(Series, Series.id == Instance.series_id)
                withdrawn = set(session.scalars(query.where(Instance.sop_instance_uid.in_(some), is_withdrawn())))
                for instance, versions in _with_versions(session, some):
                    counts = max((v for v in versions if not v.conflicting), key=lambda v: (v.received_at, v.id))
                    contradicted = bool(instance.conflict) or any(v.conflicting for v in versions)
                    found[instance.sop_instance_uid] = Held(
                        instance.sop_class_uid, counts.key, counts.digest, contradicted, instance.id in withdrawn
                    )
        return found

    def _end(self, one: OpenCommitment, state: CommitmentState, event: str, detail: str) -> None:
        with self._db.write() as session:
            row = session.scalars(sa.select(Commitment).where(*_fence(one)).with_for_update()).first()
            if row is not None:
                row.state, row.reason = state.value, detail
                _record(session, self._db.now(session), row, event, detail)


def _with_versions(session: Session, uids: Sequence[str]) -> Iterator[tuple[Instance, list[Version]]]:
    versions: dict[int, list[Version]] = {}
    instances: dict[int, Instance] = {}
    rows = session.execute(
        sa.select(Instance, Version)
        .join(Version, Version.instance_id == Instance.id)
        .where(Instance.sop_instance_uid.in_(uids))
    )
    for instance, version in rows:
        instances[instance.id] = instance
        versions.setdefault(instance.id, []).append(version)
    return ((instances[number], versions[number]) for number in instances)


def _due(now: datetime) -> sa.Select[Commitment]:
    due = sa.select(Commitment).where(Commitment.state == CommitmentState.OPEN.value, Commitment.due_at <= now)
    return due.order_by(Commitment.due_at, Commitment.id).limit(1)


def _fence(one: OpenCommitment) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Commitment.id == one.id,
        Commitment.attempt == one.attempt,
        Commitment.state == CommitmentState.OPEN.value,
    )


def _opened(row: Commitment, now: datetime) -> OpenCommitment:
    return OpenCommitment(
        id=row.id,
        transaction_uid=row.transaction_uid,
        calling_ae=row.calling_ae,
        references=tuple((sop_class, sop_instance) for sop_class, sop_instance in row.references),
        attempt=row.attempt,
        is_duplicate=row.duplicate,
        age=now - row.requested_at,
    )


def _record(session: Session, now: datetime, row: Commitment, event: str, detail: str) -> None:
    said = f"Transaction {row.transaction_uid} of {row.calling_ae}: {detail}"
    audit.record(session, now, _ACTOR, event, detail=said)
