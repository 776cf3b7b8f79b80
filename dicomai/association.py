"""How an association can end; the receiver says it, the database keeps it, the planner waits by it."""

from enum import StrEnum


class AssociationEnd(StrEnum):
    """How an association ended."""

    RELEASED = "released"  # the sender said that it was done (A-RELEASE)
    ABORTED = "aborted"  # either side broke it off (A-ABORT)
    LOST = "lost"  # the connection or this receiver went away, or nothing came for the idle time-out
