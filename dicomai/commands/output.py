"""How commands speak: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Standard output; what is printed is text, never markup, and where it is no terminal a sentence is one line."""
    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    """Print rows under columns, or a sentence where there is none."""
    out = console()
    if not rows:
        out.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in {"ID", "STATE"})
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)
