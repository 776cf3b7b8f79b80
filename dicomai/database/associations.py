"""Associations as leased rows: an expired one counts as lost."""

from collections.abc import Collection
from datetime import timedelta

import sqlalchemy as sa

from dicomai.association import AssociationEnd
from dicomai.database.engine import Database
from dicomai.database.tables import Association

LEASE = timedelta(seconds=60)


# Whoever holds an association knows better than a lease that ran out, as it does while the database is away.
_OPEN_OR_GIVEN_UP = sa.or_(Association.ended_at.is_(None), Association.end == AssociationEnd.LOST.value)


class Associations:
    """The open and the ended associations."""

    def __init__(self, database: Database, way_in: str = "") -> None:
        """Work on a database; `way_in` names the process whose associations are opened here."""
        self._db = database
        self._way_in = way_in

    def open(self, calling_ae: str, address: str) -> int:
        """Write down an accepted association; gives its number."""
        with self._db.write() as session:
            now = self._db.now(session)
            row = Association(
                way_in=self._way_in,
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
        """Say that these are still open; one that was given up because nobody said so for a while is open again."""
        if not associations:
            return
        with self._db.write() as session:
            expires = self._db.now(session) + LEASE
            rows = _in_order(sa.and_(Association.id.in_(associations), _OPEN_OR_GIVEN_UP))
            session.execute(
                sa.update(Association)
                .where(Association.id.in_(rows))
                .values(lease_expires=expires, ended_at=None, end=None)
            )

    def close(self, association: int, end: AssociationEnd) -> None:
        """Write down how one ended; its first word counts, but more than a lease that ran out."""
        with self._db.write() as session:
            session.execute(
                sa.update(Association)
                .where(Association.id == association, _OPEN_OR_GIVEN_UP)
                .values(ended_at=self._db.now(session), end=end.value)
            )

    def elsewhere(self, address: str) -> tuple[int, int]:
        """Count what is open at other receivers than this one: in all, and from an address."""
        with self._db.read() as session:
            rows = session.execute(
                sa.select(Association.address, sa.func.count())
                .where(
                    Association.ended_at.is_(None),
                    Association.way_in.startswith("receiver"),
                    Association.way_in != self._way_in,
                )
                .group_by(Association.address)
            ).all()
        return sum(count for _, count in rows), sum(count for near, count in rows if near == address[:64])

    def lose_expired(self) -> int:
        """End those whose lease ran out; gives how many."""
        with self._db.write() as session:
            return _lose(session, Association.lease_expires < self._db.now(session))

    def lose_all(self) -> int:
        """End every open one of this way in: for a process that starts and has none of its own yet."""
        with self._db.write() as session:
            return _lose(session, Association.way_in == self._way_in)


def _lose(session: sa.orm.Session, condition: sa.ColumnElement[bool]) -> int:
    rows = session.execute(
        sa.update(Association)
        .where(Association.id.in_(_in_order(sa.and_(Association.ended_at.is_(None), condition))))
        .values(ended_at=Association.last_activity, end=AssociationEnd.LOST.value)
        .returning(Association.id)
    )
    return len(rows.all())


def _in_order(condition: sa.ColumnElement[bool]) -> sa.Select[int]:
    """Lock rows one by one as the recorder does: two that each hold what the other waits for would both fail."""
    return sa.select(Association.id).where(condition).order_by(Association.id).with_for_update(key_share=True)
