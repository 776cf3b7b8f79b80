"""Workitem: one piece of work, its states and their legal transitions (UPS, PS3.4 Annex CC).

::

    SCHEDULED ──claim──> IN PROGRESS ──finish──> COMPLETED
        │                    │  ↺ a lease expires, or a delivery waits: another attempt, same state
        └──────cancel───────>└──fail, cancel──> CANCELED

IN PROGRESS never goes back to SCHEDULED, a final state is final, and SCHEDULED reaches CANCELED only through
IN PROGRESS (PS3.4 CC.1.1). A retry by a person is a new item that names the one it replaces.
"""

from enum import StrEnum


class State(StrEnum):
    """Procedure Step State (0074,1000)."""

    SCHEDULED = "SCHEDULED"  # planned; waits for a worker, or (when held) for a person
    IN_PROGRESS = "IN PROGRESS"  # claimed under a lease, or between two attempts of a delivery
    COMPLETED = "COMPLETED"  # done, and confirmed where there was someone to confirm it
    CANCELED = "CANCELED"  # ended without a result; the reason says why


class Kind(StrEnum):
    """What is to be done."""

    INFERENCE = "inference"  # load, infer, build: ends with frozen result objects
    DELIVERY = "delivery"  # send one result to one destination
    WITHDRAWAL = "withdrawal"  # note that a result no longer holds: ends with a rejection note, which is delivered
    FORWARD = "forward"  # let the images themselves go on: ends with a result that is what came, or that de-identified


class Priority(StrEnum):
    """Scheduled Procedure Step Priority (0074,1200)."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


FINAL = frozenset({State.COMPLETED, State.CANCELED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.IN_PROGRESS}),
    State.IN_PROGRESS: frozenset({State.IN_PROGRESS, State.COMPLETED, State.CANCELED}),
    State.COMPLETED: frozenset(),
    State.CANCELED: frozenset(),
}


def is_legal(before: State, after: State) -> bool:
    """Tell whether a workitem may go from one state to another."""
    return after in TRANSITIONS[before]
