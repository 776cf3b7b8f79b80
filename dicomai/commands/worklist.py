"""`dicomai worklist`."""

import os
import pwd
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from dicomai.commands.output import console, print_json, print_table
from dicomai.config import Settings
from dicomai.database import Database
from dicomai.database.overview import Overview, Shown
from dicomai.errors import ConfigurationError

_MOST_OBJECTS = 20


def overview(settings: Settings) -> Overview:
    """Open the worklist of a node, to look at it; errors are those of `database`."""
    return Overview(database(settings))


def database(settings: Settings) -> Database:
    """Open the worklist of a node.

    Raises:
        ConfigurationError: there is none yet, or its schema is another version's.
        StoreError: the database does not answer.
    """
    file = missing_file(settings)
    if file is not None:
        raise ConfigurationError(f"There is no worklist at {file}: `dicomai serve` or `dicomai db upgrade` makes it.")
    one = Database(settings.node.worklist_url)
    if not one.is_current():
        raise ConfigurationError("The worklist has the schema of another version: run `dicomai db upgrade`.")
    return one


def missing_file(settings: Settings) -> Path | None:
    """Name the file of an embedded worklist that is not there yet; merely to look for it would make it."""
    url = settings.node.worklist_url
    file = Path(url.removeprefix("sqlite:///"))
    return file if url.startswith("sqlite") and not file.exists() else None


def show_all(settings: Settings, *, as_json: bool, state: str | None = None) -> int:
    """List workitems, and series on which nothing runs; only those in a state, if it is given."""
    entries = overview(settings).entries(state=Shown(state.upper().replace("-", " ")) if state else None)
    if as_json:
        print_json([entry.as_dict() for entry in entries])
        return 0
    rows = [
        (
            entry.id if entry.id is not None else "-",
            entry.state + (f" {entry.progress}%" if entry.state == "IN PROGRESS" else ""),
            entry.kind,
            entry.study,
            entry.series or entry.destination,
            entry.route,
            entry.changed_at.astimezone().strftime("%m-%d %H:%M:%S"),
            entry.reason,
        )
        for entry in entries
    ]
    print_table(
        ("ID", "STATE", "KIND", "STUDY", "SERIES / TO", "ROUTE", "CHANGED", "REASON"), rows, "The worklist is empty."
    )
    return 0


def show(settings: Settings, number: int, *, as_json: bool) -> int:
    """Show one workitem with its inputs, its result and its history.

    Raises:
        WorklistError: there is no such item.
    """
    item = overview(settings).show(number)
    if as_json:
        print_json(item)
        return 0
    out = console()
    for key, value in item.items():
        if not isinstance(value, list) and value not in {None, ""}:
            text = _moment(value) if key == "changed_at" else str(value)
            out.print(f"{key.replace('_', ' '):20} {text}")
    parts: tuple[tuple[str, Sequence[str], list[tuple[object, ...]]], ...] = (
        (
            "Inputs",
            ("ROLE", "SERIES", "STACK", "INSTANCES"),
            [(i["role"], i["series_instance_uid"], i["stack"], i["instances"]) for i in item["inputs"]],
        ),
        (
            "Result",
            ("OBJECT", "SOP INSTANCE", "STATUS", "ACCEPTED", "COMMENT"),
            _objects(item["objects"]),
        ),
        (
            "History",
            ("AT", "WHO", "EVENT", "DETAIL"),
            [(_moment(h["at"]), h["actor"], h["event"], h["detail"]) for h in item["history"]],
        ),
    )
    for title, columns, rows in parts:
        if rows:
            out.print()
            out.print(title, style="bold")
            print_table(columns, rows, "")
    return 0


def _objects(objects: Sequence[Mapping[str, str]]) -> list[tuple[object, ...]]:
    """Give a line for each object, or, of a whole series, one for all to which the same was answered."""
    rows = [(o["output"], o["sop_instance_uid"], o["status"] or "", o["accepted_at"], o["comment"]) for o in objects]
    if len(rows) <= _MOST_OBJECTS:
        return [(*row[:3], _moment(row[3]), row[4]) for row in rows]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for output, _, status, at, comment in rows:
        alike.setdefault((output, status, comment), []).append(at or "")
    return [
        (f"{len(moments)} x {output}", "", status, _moment(max(moments)), comment)
        for (output, status, comment), moments in alike.items()
    ]


def _moment(text: str | None) -> str:
    """Show a time by this machine's clock, as people read it."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else ""


def change(settings: Settings, verb: str, number: int) -> int:
    """Retry, cancel or release an item on the word of the person who calls."""
    worklist = overview(settings)
    who = person()
    match verb:
        case "retry":
            console().print(f"Workitem {worklist.retry(number, who)} replaces {number}.")
        case "cancel":
            worklist.cancel(number, who)
            console().print(f"Workitem {number} is CANCELED.")
        case "release":
            why = worklist.release(number, who)
            if why:
                console().print(f"Workitem {number} waits for another word: {why}")
            else:
                console().print(f"Workitem {number} goes on with what is here, as it came first.")
        case _:
            raise ConfigurationError(f"There is no `dicomai worklist {verb}`.")
    return 0


def person() -> str:
    """Name who calls, for the audit; by number where the user has no name, as in some containers."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"person/{name}"
