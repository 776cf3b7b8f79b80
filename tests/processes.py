"""What tests run in processes of their own; imports no more than that, so that they start quickly."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from dicomai.database import Database
from dicomai.database.worklist import Worklist
from dicomai.workitem import Kind


class TurnedDatabase(Database):
    """A database whose clock can be turned forward."""

    forward = timedelta()

    def now(self, session: Session) -> datetime:
        """The database's clock, and what it was turned forward."""
        return super().now(session) + self.forward


def migrate(url: str, barrier: Any) -> None:
    """Migrate at the same moment as others."""
    database = Database(url)
    barrier.wait()
    database.migrate()
    database.close()


def work(url: str, forward: timedelta, owner: str, barrier: Any, out: Any) -> None:
    """Claim and finish inference items, together with others, until none is left."""
    database = TurnedDatabase(url)
    database.forward = forward
    worklist = Worklist(database)
    barrier.wait()
    done = []
    while (got := worklist.claim(Kind.INFERENCE, owner, 60, 3)) is not None:
        worklist.heartbeat(got, 60, 50)
        worklist.finish_inference(got, [], ())
        done.append(got.item)
    database.close()
    out.put(done)
