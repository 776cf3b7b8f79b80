"""`dicomai worklist`."""

import getpass

from dicomai.commands.output import console, print_json, print_table
from dicomai.config import Settings
from dicomai.database import Database
from dicomai.database.overview import Overview
from dicomai.errors import ConfigurationError


def overview(settings: Settings) -> Overview:
    """Open the worklist of a node.

    Raises:
        ConfigurationError: there is none yet.
    """
    url = settings.node.worklist_url
    if url.startswith("sqlite") and not (settings.node.storage / "worklist.db").exists() and not settings.node.worklist:
        raise ConfigurationError(f"There is no worklist at {url}; `dicomai serve` or `dicomai db upgrade` makes it.")
    database = Database(url)
    if not database.is_current():
        raise ConfigurationError(f"The worklist {url} has another schema; run `dicomai db upgrade`.")
    return Overview(database)


def show_all(settings: Settings, *, as_json: bool) -> int:
    """List workitems, and series on which nothing runs."""
    entries = overview(settings).entries()
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
    """Show one workitem with its history."""
    item = overview(settings).show(number)
    if as_json:
        print_json(item)
        return 0
    out = console()
    for key, value in item.items():
        if not isinstance(value, list):
            out.print(f"{key.replace('_', ' '):20} {'' if value is None else value}")
    print_table(
        ("ROLE", "SERIES", "STACK", "INSTANCES"),
        [(i["role"], i["series_instance_uid"], i["stack"], i["instances"]) for i in item["inputs"]],
        "",
    )
    print_table(
        ("OBJECT", "SOP INSTANCE", "STATUS", "ACCEPTED", "COMMENT"),
        [
            (o["output"], o["sop_instance_uid"], o["status"] or "", o["accepted_at"] or "", o["comment"])
            for o in item["objects"]
        ],
        "No result objects yet.",
    )
    print_table(
        ("AT", "WHO", "EVENT", "DETAIL"),
        [(h["at"], h["actor"], h["event"], h["detail"]) for h in item["history"]],
        "",
    )
    return 0


def change(settings: Settings, verb: str, number: int) -> int:
    """Retry, cancel or release an item on the word of the person who calls."""
    worklist = overview(settings)
    who = f"person/{getpass.getuser()}"
    match verb:
        case "retry":
            console().print(f"Workitem {worklist.retry(number, who)} replaces {number}.")
        case "cancel":
            worklist.cancel(number, who)
            console().print(f"Workitem {number} is CANCELED.")
        case "release":
            worklist.release(number, who)
            console().print(f"Workitem {number} goes on with the images as they came first.")
        case _:
            raise ConfigurationError(f"There is no `dicomai worklist {verb}`.")
    return 0
