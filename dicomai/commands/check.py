"""`dicomai config check`, `db upgrade` and `doctor`."""

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dicomai import config, weights
from dicomai.commands.output import console, print_json
from dicomai.config import DicomDestination, Settings
from dicomai.database import Database
from dicomai.destinations import echo
from dicomai.errors import DicomaiError
from dicomai.node import bundles_of, locked


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: `good`, `warning` or `bad`, and a sentence."""

    verdict: str
    about: str
    sentence: str


def config_check(settings: Settings, path: Path | None, *, as_json: bool) -> int:
    """Say that the configuration holds; a wrong one never gets here."""
    bundles_of(settings)
    found = config.find(path)
    if as_json:
        print_json({"file": str(found) if found else None, "settings": settings.model_dump(mode="json")})
    else:
        console().print(
            f"{found or 'The built-in defaults'}: {len(settings.route)} routes, {len(settings.destination)} destinations,"
            " all in order."
        )
    return 0


def db_upgrade(settings: Settings) -> int:
    """Bring the worklist's schema to this version."""
    with locked(settings.node.storage / "migration.lock"):
        Database(settings.node.worklist_url).migrate()
    console().print("The worklist has this version's schema.")
    return 0


def doctor(settings: Settings, path: Path | None, *, as_json: bool) -> int:
    """Look the node over, and say what to mend."""
    found = config.find(path)
    findings = [Finding("good", "configuration", str(found or "built-in defaults"))]
    for look in (_storage, _database, _models, _destinations, _receiver, _routes, _device):
        findings.extend(look(settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"good": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "bad": "[red]✗[/red]"}
        for finding in findings:
            console().print(marks[finding.verdict], f"{finding.about}:", finding.sentence)
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def _tried(about: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding("good", about, attempt())
    except DicomaiError as error:
        return Finding("bad", about, str(error))


def _storage(settings: Settings) -> list[Finding]:
    folder = settings.node.storage
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            one = Path(room) / "one"
            one.touch()
            os.link(one, Path(room) / "two")
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    except OSError as error:
        return [
            Finding(
                "bad",
                "storage",
                f"{folder} cannot be written with hard links ({error.strerror}); use a local file system.",
            )
        ]
    verdict = "good" if free >= settings.receiver.min_free_bytes else "bad"
    return [Finding(verdict, "storage", f"{folder}, {free / 1e9:.1f} GB free")]


def _database(settings: Settings) -> list[Finding]:
    def attempt() -> str:
        database = Database(settings.node.worklist_url)
        current = database.is_current()
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
        if isinstance(entry, DicomDestination):

            def attempt(entry: DicomDestination = entry) -> str:
                seconds = echo(entry, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout)
                return f"{entry.ae_title} answered in {1000 * seconds:.0f} ms"

            findings.append(_tried(f"destination {entry.name}", attempt))
        elif os.access(entry.path if entry.path.exists() else entry.path.parent, os.W_OK):
            findings.append(Finding("good", f"destination {entry.name}", str(entry.path)))
        else:
            findings.append(Finding("bad", f"destination {entry.name}", f"{entry.path} cannot be written to."))
    return findings


def _receiver(settings: Settings) -> list[Finding]:
    findings = []
    if not settings.receiver.allow:
        findings.append(
            Finding("warning", "receiver", "anyone may send: list the AE titles that may in receiver.allow.")
        )
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", settings.node.port)) == 0
    said = "something answers on it; a node runs, or another program has it" if taken else "free"
    findings.append(Finding("good", f"port {settings.node.port}", said))
    return findings


def _routes(settings: Settings) -> list[Finding]:
    if not settings.route:
        return [Finding("warning", "routes", "there is none: what arrives is kept, and nothing is run on it.")]
    return [
        Finding("warning", f"route {route.name}", "it has no destinations: results stay in the storage.")
        for route in settings.route
        if not route.destinations
    ]


def _device(settings: Settings) -> list[Finding]:
    import torch  # noqa: PLC0415  one look at what inference will find

    wanted = settings.worker.device
    here = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if here else "CPU"
    if wanted == "cuda" and not here:
        return [Finding("bad", "device", "worker.device asks for a GPU and there is none.")]
    return [Finding("good", "device", name)]
