"""What destinations were last seen to accept: written by who probes them, read by who builds results for them."""

import sqlalchemy as sa

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.tables import DestinationProbe
from dicomai.profiles import Probe


class Probes:
    """The last probe of each destination."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def last(self) -> dict[str, Probe]:
        """Give the last probe of every destination that was ever probed, by the destination's name."""
        with self._db.read() as session:
            return {row.destination: _probe(row) for row in session.scalars(sa.select(DestinationProbe))}

    def answered(self, destination: str, accepted: frozenset[tuple[str, str]], actor: str) -> bool:
        """Write down what a destination accepts: SOP Class UID and Transfer Syntax UID of each context.

        Returns:
            Whether that is news.
        """
        with self._db.write() as session:
            now = self._db.now(session)
            row = session.get(DestinationProbe, destination)
            seen = sorted(map(list, accepted))
            is_news = row is None or row.answered_at is None or row.accepted != seen
            session.merge(
                DestinationProbe(destination=destination, tried_at=now, error="", answered_at=now, accepted=seen)
            )
            if is_news:
                audit.record(session, now, actor, "probed", detail=f"{destination} accepts {len(seen)} contexts")
            return is_news

    def failed(self, destination: str, error: str) -> None:
        """Write down why a destination gave no answer; what it was seen to accept before stands."""
        with self._db.write() as session:
            now = self._db.now(session)
            row = session.get(DestinationProbe, destination)
            if row is None:
                row = DestinationProbe(destination=destination, accepted=[])
                session.add(row)
            row.tried_at, row.error = now, error


def _probe(row: DestinationProbe) -> Probe:
    accepted = frozenset((sop_class, syntax) for sop_class, syntax in row.accepted)
    return Probe(row.tried_at, row.error, row.answered_at, accepted)
