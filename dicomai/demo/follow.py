"""A study's way through the demo's node, as the worklist tells it."""

import time

from dicomai.database import Database
from dicomai.database.overview import Entry, Overview
from dicomai.demo.node import MODEL, QUIET_SECONDS, DemoError, DemoNode
from dicomai.demo.steps import Step, Steps
from dicomai.workitem import Kind, State


def follow(node: DemoNode, steps: Steps) -> None:
    """Watch the worklist until every result is delivered.

    Raises:
        DemoError: the node ended, it took too long, or the work came to nothing.
    """
    database = Database(f"sqlite:///{node.storage / 'worklist.db'}")
    overview = Overview(database)
    way = _Way(steps)
    try:
        while not way.is_complete:
            node.check()
            for entry in reversed(overview.entries()):  # the oldest first
                way.note(entry)
            time.sleep(0.1)
    finally:
        database.close()


class _Way:
    """The steps that a study takes, one after another."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._waiting = steps.begin(
            f"Waiting until the series is complete: {QUIET_SECONDS:.0f} s without another image"
        )
        self._analysis: Step | None = None
        self._deliveries: dict[str, Step] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every delivery that is planned is done: they are planned all at once."""
        return bool(self._deliveries) and all(step.is_over for step in self._deliveries.values())

    def note(self, entry: Entry) -> None:
        """Take in a line of the worklist."""
        if entry.state in {State.CANCELED, "NOT ROUTED"} or entry.state.endswith("(held)"):
            raise DemoError(f"The {entry.kind} came to nothing: {entry.reason}")
        if entry.kind == Kind.INFERENCE:
            self._note_analysis(entry)
        elif entry.kind == Kind.DELIVERY:
            self._note_delivery(entry)

    def _note_analysis(self, entry: Entry) -> None:
        if self._analysis is None:
            self._steps.end(self._waiting, "The series is complete, a route matches: it is on the worklist")
            self._analysis = self._steps.begin(f"Analysis by {MODEL}")
        if self._analysis.is_over:
            return
        self._analysis.fraction = entry.progress / 100
        if entry.state == State.COMPLETED:
            self._steps.end(self._analysis, f"Analysed by {MODEL}; a SEG and an SR are built")

    def _note_delivery(self, entry: Entry) -> None:
        where = entry.destination
        if where not in self._deliveries:
            self._deliveries[where] = self._steps.begin(f"Sending to the {where}")
        if entry.state == State.COMPLETED and not self._deliveries[where].is_over:
            self._steps.end(self._deliveries[where], f"SEG and SR accepted by the {where}")
