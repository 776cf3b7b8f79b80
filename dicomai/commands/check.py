"""`dicomai config check` and `passcode`, `db upgrade` and `doctor`."""

import errno
import getpass
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.text import Text

from dicomai import config, passcodes, tls, weights
from dicomai.commands.output import console, print_json
from dicomai.commands.worklist import missing_file
from dicomai.config import (
    Destination,
    DicomDestination,
    DicomwebDestination,
    FolderDestination,
    Settings,
    SftpDestination,
)
from dicomai.database import Database
from dicomai.destinations import ask, echo
from dicomai.destinations.dimse.probe import probe
from dicomai.errors import ConfigurationError, DicomaiError, RejectedError, UnreachableError
from dicomai.node import bundles_of, locked
from dicomai.profiles import Probe, denied
from dicomai.store import Store

_RENEWAL_DAYS = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: `good`, `warning` or `bad`, and a sentence."""

    verdict: str
    about: str
    sentence: str


def config_check(settings: Settings, path: Path | None, *, as_json: bool) -> int:
    """Say that the configuration holds; a wrong one never gets here.

    Raises:
        BundleError: a route names a model that is missing or not sound.
    """
    bundles_of(settings)
    found = config.find(path)
    idle = _forwards(settings)
    if as_json:
        warnings = [f"{one.about}: {one.sentence}" for one in idle]
        shown = {"file": str(found) if found else None, "settings": settings.model_dump(mode="json")}
        print_json({**shown, "warnings": warnings})
        return 0
    where = found or "The built-in defaults"
    forwards = f", {_count(settings.forward, 'forward rule')}" if settings.forward else ""
    counts = f"{_count(settings.route, 'route')}{forwards} and {_count(settings.destination, 'destination')}"
    console().print(f"{where}: {counts}, all in order.")
    for one in idle:
        console().print(f"! {one.about}: {one.sentence}")
    return 0


def config_passcode() -> int:
    """Print the hash of a passcode, as `[[user]]` has it; it is asked for twice, or read from standard input.

    Raises:
        ConfigurationError: it is empty, or not the same both times.
    """
    if sys.stdin.isatty():
        passcode = getpass.getpass("Passcode: ")
        if getpass.getpass("Once more: ") != passcode:
            raise ConfigurationError("The two passcodes are not the same: try again.")
    else:
        passcode = sys.stdin.readline().rstrip("\r\n")
    if not passcode:
        raise ConfigurationError("The passcode is empty: give one.")
    sys.stdout.write(passcodes.hashed(passcode.encode()) + "\n")
    return 0


def _count(entries: Sequence[object], what: str) -> str:
    return f"{len(entries)} {what}{'' if len(entries) == 1 else 's'}"


def db_upgrade(settings: Settings) -> int:
    """Bring the worklist's schema to this version.

    Raises:
        StoreError: the storage cannot be written, or the database does not answer.
    """
    Store(settings.node.storage)  # says in a sentence what is wrong with the folder
    with locked(settings.node.storage / "migration.lock"):
        Database(settings.node.worklist_url).migrate()
    console().print("The worklist has this version's schema.")
    return 0


def doctor(settings: Settings, path: Path | None, *, as_json: bool) -> int:
    """Look the node over, and say what to mend."""
    found = config.find(path)
    findings = [Finding("good", "configuration", str(found or "built-in defaults")), *_secrets(settings, found)]
    looks = (
        _storage, _database, _models, _destinations, _receiver, _users, _tls, _console, _routes, _forwards, _device,
    )  # fmt: skip
    for look in looks:
        findings.extend(look(settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"good": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "red")}
        for finding in findings:
            console().print(Text.assemble(marks[finding.verdict], f" {finding.about}: {finding.sentence}"))
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def _tried(about: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding("good", about, attempt())
    except DicomaiError as error:
        return Finding("bad", about, str(error))


def _secrets(settings: Settings, file: Path | None) -> list[Finding]:
    """Say which files with a secret everybody on the machine can read, beside the one that `[tls]` names."""
    findings = [
        _open_key(f"destination {one.name}", one.key)
        for one in settings.destination
        if isinstance(one, SftpDestination) and one.key is not None and _is_open(one.key)
    ]
    if file is not None and _is_open(file) and config.holds_secret(file):
        sentence = (
            f"{file} holds a token, password or key and can be read by everyone on this machine: chgrp it to the group"
            " of the node's user, then chmod o= it."
        )
        findings.append(Finding("warning", "configuration", sentence))
    return findings


def _open_key(about: str, key: Path) -> Finding:
    return Finding("warning", about, f"{key} can be read by everyone on this machine: chmod o= it.")


def _is_open(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:  # whoever needs the file says that it cannot be had
        return False


def _storage(settings: Settings) -> list[Finding]:
    """Try what the node needs of the folder; a folder that is not there yet is not made, it is the node's to make."""
    folder = settings.node.storage.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there) as room:
            one = Path(room) / "one"
            one.touch()
            (Path(room) / "two").hardlink_to(one)
        free = shutil.disk_usage(there).free
    except OSError as error:
        sentence = (
            f"{there} cannot be written with hard links ({error.strerror}):"
            " let this user write there, on a local file system."
        )
        return [Finding("bad", "storage", sentence)]
    said = f"{folder}, {free / 1e9:.1f} GB free" + ("" if there == folder else "; it is made at the first start")
    if free < settings.receiver.min_free_bytes:
        need = settings.receiver.min_free_bytes / 1e9
        return [Finding("bad", "storage", f"{said}: nothing is received with less than {need:.1f} GB, free some.")]
    return [Finding("good", "storage", said)]


def _database(settings: Settings) -> list[Finding]:
    file = missing_file(settings)
    if file is not None:
        return [Finding("good", "worklist", f"{file} is made at the first start")]

    def attempt() -> str:
        database = Database(settings.node.worklist_url)
        current = database.is_current()
        database.close()
        return "reached" + ("" if current else "; `dicomai serve` will bring its schema to this version")

    return [_tried("worklist", attempt)]


def _models(settings: Settings) -> list[Finding]:
    try:
        bundles = bundles_of(settings)
    except DicomaiError as error:
        return [Finding("bad", "models", str(error))]

    def attempt(name: str) -> str:
        weights.located(bundles[name], settings.node.storage)
        return f"version {bundles[name].version}, weights in order"

    return [_tried(f"model {name}", lambda name=name: attempt(name)) for name in bundles]  # type: ignore[misc]


def _destinations(settings: Settings) -> list[Finding]:
    findings = []
    for entry in settings.destination:
        about = f"destination {entry.name}"
        if isinstance(entry, FolderDestination):
            findings.append(_folder(entry))
            continue
        findings.append(_asked(entry, settings))
        if isinstance(entry, DicomDestination) and findings[-1].verdict == "good":
            findings += _profile(entry, settings)
        if isinstance(entry, DicomwebDestination) and entry.is_open_secret:
            sentence = "its token or password travels where anyone on the network can read it: call it by https."
            findings.append(Finding("warning", about, sentence))
    return findings


def _asked(entry: Destination, settings: Settings) -> Finding:
    about = f"destination {entry.name}"
    try:
        asked = ask(entry, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout, tls=settings.tls)
    except DicomaiError as error:
        return Finding("bad", about, str(error))
    who = entry.ae_title if isinstance(entry, DicomDestination) else "it"
    said = f"{who} answered in {1000 * asked.seconds:.0f} ms"
    return Finding("warning", about, f"{said}: {asked.remark}") if asked.remark else Finding("good", about, said)


def _profile(entry: DicomDestination, settings: Settings) -> list[Finding]:
    """Hold what a destination accepts against its profile."""
    about = f"destination {entry.name}"
    try:
        accepted = probe(entry, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout, tls=settings.tls)
    except DicomaiError as error:
        return [Finding("bad", about, str(error))]
    now = datetime.now(UTC)
    remark = denied(entry.profile, Probe(now, "", now, accepted), entry.services)
    return [Finding("warning", about, remark)] if remark else []


def _folder(entry: FolderDestination) -> Finding:
    folder = entry.path.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("good", f"destination {entry.name}", str(entry.path))
    sentence = f"{there} cannot be written to: mount it, or let this user write there."
    return Finding("bad", f"destination {entry.name}", sentence)


def _receiver(settings: Settings) -> list[Finding]:
    findings = []
    if not settings.receiver.allow:
        sentence = "anyone may send: list the AE titles that may in receiver.allow."
        findings.append(Finding("warning", "receiver", sentence))
    findings += _reports(settings)
    if settings.receiver.commitment and not settings.source:
        sentence = "whoever asks for storage commitment and does not wait is never told: add a [[source]] for it."
        findings.append(Finding("warning", "commitment", sentence))
    if settings.receiver.commitment and settings.console.is_local and not settings.console.public_url:
        sentence = (
            "what is committed could be fetched by this machine alone: set console.host to an address of the network, "
            "or console.public_url where a reverse proxy stands before it."
        )
        findings.append(Finding("warning", "commitment", sentence))
    node = settings.node
    about = f"port {node.port}"
    host = "127.0.0.1" if node.host in {"0.0.0.0", "::"} else node.host  # noqa: S104  a comparison
    us = DicomDestination(type="dicom", name="this node", ae_title=node.ae_title, host=host, port=node.port)
    try:
        with socket.create_server((node.host, node.port), family=_family(node.host)):
            return [*findings, Finding("good", about, "free; the node does not run")]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            sentence = f"{node.host} port {node.port} cannot be had ({error.strerror}): set node.host and node.port."
            return [*findings, Finding("bad", about, sentence)]
    if settings.receiver.tls:
        return [*findings, _tried(about, lambda: _answer_by_tls(settings, host))]
    try:
        echo(us, calling_ae=node.ae_title, timeout=settings.delivery.timeout)
    except RejectedError as error:
        if settings.receiver.allow or settings.user:  # our own AE title need not be one that may send
            return [*findings, Finding("good", about, "a DICOM node answers, which does not let us in as a sender")]
        return [*findings, Finding("bad", about, f"another DICOM node has it: {error}")]
    except UnreachableError:
        sentence = "another program has it: end that program, or set node.port to a free one."
        return [*findings, Finding("bad", about, sentence)]
    return [*findings, Finding("good", about, f"{node.ae_title} answers")]


def _reports(settings: Settings) -> list[Finding]:
    """Say which destinations may not be able to report what they commit."""
    findings = []
    let_in = {entry.partition("@")[0].strip() for entry in settings.receiver.allow}
    for entry in settings.destination:
        if not isinstance(entry, DicomDestination) or not entry.commitment:
            continue
        if let_in and entry.ae_title not in let_in:
            sentence = f"{entry.ae_title} cannot report what it commits to this port: add it to receiver.allow."
            findings.append(Finding("warning", f"destination {entry.name}", sentence))
        if settings.user:
            sentence = (
                f"{entry.ae_title} can report what it commits to this port only if it shows the user name of a"
                " [[user]]: have it do so, or report on the association of the request."
            )
            findings.append(Finding("warning", f"destination {entry.name}", sentence))
    return findings


def _answer_by_tls(settings: Settings, host: str) -> str:
    if not tls.is_ours(settings.tls, host, settings.node.port, settings.delivery.timeout):
        raise ConfigurationError("another program has it: end that program, or set node.port to a free one.")
    return "this node answers by TLS"


def _users(settings: Settings) -> list[Finding]:
    if not settings.user or settings.receiver.tls:
        return []
    sentence = "passcodes travel where anyone on the network can read them: set receiver.tls."
    return [Finding("warning", "users", sentence)]


def _tls(settings: Settings) -> list[Finding]:
    """Try the certificates, and say which end soon."""
    findings = []
    try:
        if settings.receiver.tls:
            tls.server_context(settings.tls)
        for path, end in tls.ends_of_validity(settings.tls):
            days = (end - time.time()) / 86400
            said = f"{path} is valid for {days:.0f} days"
            if days < _RENEWAL_DAYS:
                findings.append(Finding("warning", "tls", f"{said}: renew it."))
            else:
                findings.append(Finding("good", "tls", said))
    except ConfigurationError as error:
        findings.append(Finding("bad", "tls", str(error)))
    if settings.tls.key is not None and _is_open(settings.tls.key):
        findings.append(_open_key("tls", settings.tls.key))
    return findings


def _console(settings: Settings) -> list[Finding]:
    if not settings.console.dicomweb or settings.console.is_local:
        return []
    sentence = (
        f"DICOMweb on {settings.console.host} sends images and the token where anyone on the network can read them:"
        " set console.host to 127.0.0.1, and put a reverse proxy with TLS in front."
    )
    return [Finding("warning", "console", sentence)]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _routes(settings: Settings) -> list[Finding]:
    if not settings.route:
        return [Finding("warning", "routes", "there is none: what arrives is kept, and nothing is run on it.")]
    return [
        Finding("warning", f"route {route.name}", "it has no destinations: results stay in the storage.")
        for route in settings.route
        if not route.destinations
    ]


def _forwards(settings: Settings) -> list[Finding]:
    return [
        Finding("warning", f"forward {forward.name}", "it has no destinations: nothing goes on by it; name some.")
        for forward in settings.forward
        if not forward.destinations
    ]


def _device(settings: Settings) -> list[Finding]:
    from dicomai import inference  # noqa: PLC0415  imports torch; no other command of this file needs it

    return [_tried("device", lambda: inference.describe_device(settings.worker.device))]
