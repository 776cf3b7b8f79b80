"""`dicomai echo` and `dicomai send`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dicomai import folder
from dicomai.commands.output import console, print_json
from dicomai.config import (
    Destination,
    DicomDestination,
    DicomwebDestination,
    S3Destination,
    Settings,
    SftpDestination,
)
from dicomai.destinations import SentFile, ask, open_destination, send_each, send_files
from dicomai.errors import ConfigurationError


def destination(settings: Settings, text: str) -> Destination:
    """Find whom to talk to: the name of a destination in the configuration, or `AE@host:port`.

    Raises:
        ConfigurationError: it is neither.
    """
    found = re.fullmatch(r"([^@]+)@([^@:]+):(\d+)", text)
    if found:
        try:
            return DicomDestination(type="dicom", name=text, ae_title=found[1], host=found[2], port=int(found[3]))
        except ValueError as error:
            raise ConfigurationError(f"'{text}' is no AE@host:port; an example is PACS@10.1.2.3:104.") from error
    return settings.destination_named(text)


def echo(settings: Settings, name: str, *, as_json: bool) -> int:
    """Verify a destination: an AE by C-ECHO, an origin server by a search, SFTP by a login, a bucket by a list."""
    entry = destination(settings, name)
    asked = ask(entry, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout, tls=settings.tls)
    if as_json:
        print_json({"destination": entry.name, "seconds": round(asked.seconds, 4), "remark": asked.remark})
    else:
        said = f"{_whom(entry)} answered {settings.node.ae_title} in {1000 * asked.seconds:.0f} ms"
        console().print(f"{said}: {asked.remark}" if asked.remark else f"{said}.")
    return 0


def send(settings: Settings, paths: Sequence[Path], name: str, *, as_json: bool) -> int:
    """Send DICOM files as they are; of a folder, every DICOM file in it.

    Returns:
        0 if the destination has every file now, else 1.

    Raises:
        ConfigurationError: there is no such destination, or a path does not exist.
        DeliveryError: there was no association, or no connection.
    """
    entry = destination(settings, name)
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise ConfigurationError(f"{missing} does not exist.")
    files = [file for path in paths for file in (folder.files(path) if path.is_dir() else (path,))]
    screen = Console(stderr=True)
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=screen, transient=True, disable=as_json or not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def note(_: SentFile, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        calling_ae, timeout = settings.node.ae_title, settings.delivery.timeout
        if isinstance(entry, DicomDestination):
            sent = send_files(files, entry, calling_ae=calling_ae, timeout=timeout, tls=settings.tls, progress=note)
        else:
            there = open_destination(entry, calling_ae=calling_ae, timeout=timeout, tls=settings.tls)
            sent = send_each(files, there, progress=note)
    if as_json:
        print_json(
            [
                {"file": str(s.path), "accepted": s.is_accepted, "status": _hex(s.status), "comment": s.text}
                for s in sent
            ]
        )
    else:
        for one in sent:
            if one.text:
                (sys.stdout if one.is_accepted else sys.stderr).write(f"{one.path}: {one.text}\n")
        console().print(f"{sum(s.is_accepted for s in sent)} of {len(sent)} files accepted by {entry.name}.")
    return 0 if sent and all(s.is_accepted for s in sent) else 1


def _whom(entry: Destination) -> str:
    match entry:
        case DicomDestination():
            return f"{entry.ae_title} at {entry.host} port {entry.port}"
        case DicomwebDestination():
            return entry.url
        case S3Destination():
            return f"{entry.bucket} at {entry.url}"
        case SftpDestination():
            return f"{entry.host} port {entry.port}"
    return entry.name


def _hex(status: int | None) -> str | None:
    return None if status is None else f"0x{status:04X}"
