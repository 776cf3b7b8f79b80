"""Associations as leased rows: an expired one counts as lost."""

from collections.abc import Collection
from datetime import timedelta
from enum import StrEnum

import sqlalchemy as sa

from dicomai.database.engine import Database
from dicomai.database.tables import Association

LEASE = timedelta(seconds=60)


class AssociationEnd(StrEnum):
    """How an association ended."""

    RELEASED = "released"  # the sender said that it was done (A-RELEASE)
    ABORTED = "aborted"  # either side broke it off (A-ABORT)
    LOST = "lost"  # the connection, or this receiver, went away


class Associations:
    """The open and the ended associations."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def open(self, calling_ae: str, address: str) -> int:
        """Write down an accepted association; gives its number."""
        with self._db.write() as session:
            now = self._db.now(session)
            row = Association(
                calling_ae=calling_ae[:16],
                address=address[:64],
                opened_at=now,
                last_activity=now,
                lease_expires=now + LEASE,
            )
            session.add(row)
            session.flush()
            return row.id

    def renew(self, associations: Collection[int]) -> None:
        """Say that these are still open."""
        if not associations:
            return
        with self._db.write() as session:
            expires = self._db.now(session) + LEASE
            session.execute(
                sa.update(Association).where(Association.id.in_(associations)).values(lease_expires=expires)
            )

    def close(self, association: int, end: AssociationEnd) -> None:
        """Write down how one ended; the first word counts."""
        with self._db.write() as session:
            session.execute(
                sa.update(Association)
                .where(Association.id == association, Association.ended_at.is_(None))
                .values(ended_at=self._db.now(session), end=end.value)
            )

    def lose_expired(self) -> int:
        """End those whose lease ran out; gives how many."""
        with self._db.write() as session:
            return _lose(session, Association.lease_expires < self._db.now(session))

    def lose_all(self) -> int:
        """End every open one: for a receiver that starts and has none of its own yet."""
        with self._db.write() as session:
            return _lose(session, sa.true())


def _lose(session: sa.orm.Session, condition: sa.ColumnElement[bool]) -> int:
    rows = session.execute(
        sa.update(Association)
        .where(Association.ended_at.is_(None), condition)
        .values(ended_at=Association.last_activity, end=AssociationEnd.LOST.value)
        .returning(Association.id)
    )
    return len(rows.all())
