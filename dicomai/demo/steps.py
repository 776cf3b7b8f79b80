"""The demo's steps as they are seen: live on a terminal, a line for each step that ends elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_BAR = 24  # characters


@dataclass
class Step:
    """One step.

    Attributes:
        sentence: what goes on, then what was done.
        fraction: how far it is, 0 to 1; None where that is not known.
    """

    sentence: str
    fraction: float | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    failed: bool = False
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.seconds is not None


class Steps:
    """The steps so far; a context manager, shown while its block runs."""

    def __init__(self, console: Console) -> None:
        """Show steps on a console."""
        self._console = console
        self._steps: list[Step] = []
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=10, transient=False)

    def __enter__(self) -> "Steps":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for step in self._steps:
            if error is not None and not step.is_over:
                step.failed = True
                self.end(step, step.sentence)
        self._live.stop()

    @contextmanager
    def step(self, sentence: str) -> Iterator[Step]:
        """Run a step: `sentence` says what goes on; its block changes it to say what was done."""
        one = self.begin(sentence)
        yield one
        self.end(one, one.sentence)

    def begin(self, sentence: str) -> Step:
        """Begin a step that `end` ends; several may be under way."""
        one = Step(sentence)
        self._steps.append(one)
        return one

    def end(self, step: Step, sentence: str) -> None:
        """End a step: `sentence` says what was done."""
        step.sentence, step.fraction, step.seconds = sentence, None, time.monotonic() - step.began
        if not self._console.is_terminal:
            mark = "failed" if step.failed else "done"
            self._console.print(f"{mark:6}  {step.seconds:5.1f} s  {step.sentence}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for one in self._steps:
            took = one.seconds if one.seconds is not None else time.monotonic() - one.began
            mark: Text | Spinner = one.spinner
            if one.failed:
                mark = Text("✗", style="red")
            elif one.is_over:
                mark = Text("✓", style="green")
            table.add_row(mark, Text(f"{took:5.1f} s", style="dim"), _sentence(one))
        return table


def _sentence(step: Step) -> Text:
    text = Text(step.sentence)
    if step.fraction is not None:
        full = round(step.fraction * _BAR)
        text.append("  ").append("━" * full, "cyan").append("━" * (_BAR - full), "bright_black")
        text.append(f" {step.fraction:.0%}")
    return text
