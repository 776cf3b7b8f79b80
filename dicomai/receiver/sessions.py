"""The associations that are open now, each closed in the intake exactly once."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from pynetdicom.association import Association

from dicomai.association import AssociationEnd
from dicomai.receiver.policy import Refusal
from dicomai.receiver.ports import Intake

log = structlog.get_logger()

_REMEDY = {
    AssociationEnd.ABORTED: "look at the sender's log, and have it send again what was not answered",
    AssociationEnd.LOST: "check the network and the sender, and have it send again what was not acknowledged",
}


@dataclass(slots=True)
class Session:
    """One open association.

    Attributes:
        calling_ae: who sends.
        address: from where.
        row: its number in the intake; None where only Verification was proposed.
        instances: how many were acknowledged.
        failures: how many were answered with a failure.
        size: bytes of the data sets that were acknowledged.
        owed: SOP Instance UIDs that were not stored for a reason of ours and have not come again.
        was_aborted: the sender's A-ABORT came.
        was_closed: the connection is closed.
        opened: time.monotonic() at the start.
    """

    calling_ae: str
    address: str
    row: int | None = None
    instances: int = 0
    failures: int = 0
    size: int = 0
    owed: set[str] = field(default_factory=set)
    was_aborted: bool = False
    was_closed: bool = False
    opened: float = field(default_factory=time.monotonic)


class Sessions:
    """Every open association; safe to use from all threads."""

    def __init__(self, intake: Intake) -> None:
        """Start without any."""
        self._intake = intake
        self._lock = threading.Lock()
        self._open: dict[Association, Session] = {}
        self._closing = 0

    def __len__(self) -> int:
        """Count those that are open, and those whose end is being written down."""
        with self._lock:
            return len(self._open) + self._closing

    def associations(self) -> list[Association]:
        """List the open ones."""
        with self._lock:
            return list(self._open)

    def find(self, assoc: Association) -> Session | None:
        """Find one; None if it was refused or is closed."""
        with self._lock:
            return self._open.get(assoc)

    def enter(
        self, assoc: Association, session: Session, refusal: Callable[[int, int], Refusal | None]
    ) -> Refusal | None:
        """Count an association in, unless `refusal` says why not.

        Args:
            assoc: the association.
            session: what is known of it.
            refusal: judges how many are open, and how many of them from the same address.
        """
        with self._lock:
            near = sum(other.address == session.address for other in self._open.values())
            refused = refusal(len(self._open), near)
            if refused is None:
                self._open[assoc] = session
            return refused

    def drop(self, assoc: Association) -> None:
        """Forget one that came to nothing."""
        with self._lock:
            self._open.pop(assoc, None)

    def close(self, assoc: Association, outcome: AssociationEnd) -> None:
        """Close one in the intake; the first call counts, further ones do nothing.

        One that was released while instances are owed has not brought its series whole: it counts as lost, so that
        the series waits for the sender to send them again.
        """
        with self._lock:
            session = self._open.pop(assoc, None)
            if session is None or session.row is None:
                return
            self._closing += 1  # who waits for the last one waits until it is written down
        try:
            self._close(session, session.row, outcome)
        finally:
            with self._lock:
                self._closing -= 1

    def _close(self, session: Session, row: int, outcome: AssociationEnd) -> None:
        facts = {
            "association": row,
            "calling_ae": session.calling_ae,
            "instances": session.instances,
            "failures": session.failures,
            "bytes": session.size,
            "seconds": round(time.monotonic() - session.opened, 3),
        }
        if outcome is AssociationEnd.RELEASED and session.owed:
            outcome = AssociationEnd.LOST
            log.warning(
                "association released, but not all of it could be stored; its series wait for the rest",
                remedy="see the refused instances above, then have the sender send them again",
                **facts,
            )
        elif outcome is AssociationEnd.RELEASED:
            log.info("association released", **facts)
        else:
            log.warning(f"association {outcome}", remedy=_REMEDY[outcome], **facts)
        try:
            self._intake.close_association(row, outcome)
        except Exception as error:  # noqa: BLE001  whatever the index has, its lease runs out and says the same
            log.error(
                "the end of an association could not be written down; its lease will run out",
                association=row,
                error=type(error).__name__,
            )

    def overdue(self, seconds: float) -> list[Association]:
        """List those that are open for longer than some seconds, and log them."""
        with self._lock:
            found = [(a, s) for a, s in self._open.items() if time.monotonic() - s.opened > seconds]
        for _, session in found:
            log.warning(
                "association is open for too long",
                remedy="find out why the sender does not end it, or raise receiver.total_timeout",
                association=session.row,
                calling_ae=session.calling_ae,
                address=session.address,
            )
        return [assoc for assoc, _ in found]

    def close_dead(self) -> None:
        """Close those whose thread ended without a word."""
        for assoc in self.associations():
            if assoc.ident is not None and not assoc.is_alive():
                self.close(assoc, AssociationEnd.LOST)

    def renew(self) -> None:
        """Renew the leases of the open ones."""
        with self._lock:
            rows = [session.row for session in self._open.values() if session.row is not None]
        if not rows:
            return
        try:
            self._intake.renew(rows)
        except Exception as error:  # noqa: BLE001  the next renewal may work; the receiver must go on
            log.error(
                "leases of open associations could not be renewed",
                associations=len(rows),
                error=type(error).__name__,
            )
