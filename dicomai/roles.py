"""The roles of a node, each a process of its own: what a spawned process does until its parent ends it.

Every process comes through this module, and a sender waits for the receiver: each imports what it needs and no more.
"""

import contextlib
import fcntl
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dicomai import log
from dicomai.config import DicomDestination, Settings, SourceSettings
from dicomai.errors import ConfigurationError, DicomaiError
from dicomai.store import Store

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

    from dicomai.bundle import Bundle
    from dicomai.console.dicomweb import DicomWeb
    from dicomai.database import Database
    from dicomai.intake import Intake
    from dicomai.prober import Prober
    from dicomai.receiver.services import Service

# ruff: noqa: PLC0415

logger = structlog.get_logger()

GRACE_SECONDS = 30.0
"""How long a role may take to end."""

_WORKER_NICENESS = 10
"""A network on the CPU takes all that it can get of it; a sender waits for the receiver."""

WRONG_CALL = 2
"""Exit status of a role that found the configuration wrong."""


class Role(StrEnum):
    """What a process of the node does."""

    RECEIVER = "receiver"
    PLANNER = "planner"
    WORKER = "worker"
    DELIVERY = "delivery"
    CONSOLE = "console"


def run_role(name: str, number: int, settings: Settings, pipe: Connection, door: socket.socket | None = None) -> None:
    """Be one role; the entry of a spawned process.

    Args:
        name: of the role.
        number: which of the role's processes this is, from 1.
        settings: of the node.
        pipe: to the parent.
        door: what the receivers listen on together.
    """
    role = Role(name)
    # The parent alone hears the terminal's Ctrl-C and tells each role in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log.configure(settings.node.log, role=role.value)
    cue = _Cue(pipe, number, door)
    threading.Thread(target=_watch_parent, args=(cue,), daemon=True).start()
    try:
        _ROLES[role](settings, cue)
    except ConfigurationError as error:
        logger.error("cannot start", error=str(error))
        sys.exit(WRONG_CALL)
    except DicomaiError as error:
        logger.error("ended", error=str(error))
        sys.exit(1)
    except Exception:  # its text may quote a patient: type and place are logged
        logger.exception("ended by an error that nobody foresaw")
        sys.exit(1)


@dataclass(frozen=True)
class _Cue:
    """What the parent says to a role, and the role to it.

    Attributes:
        number: which of the role's processes this is, from 1.
        door: what the receivers listen on together.
        begin: storage and database are in order; set at the end too, so that nobody waits for it in vain.
        stop: this is the end.
    """

    pipe: Connection
    number: int = 1
    door: socket.socket | None = None
    begin: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Wait until the role may begin; ends the process if it never may."""
        self.begin.wait()
        if self.stop.is_set():
            sys.exit(0)

    def ready(self) -> None:
        """Say that the role is at work; a parent that is gone hears nothing any more."""
        with contextlib.suppress(OSError):
            self.pipe.send("ready")


def _watch_parent(cue: _Cue) -> None:
    """Stop when the parent closes its end of the pipe, on purpose or by dying; then end within the grace."""
    with contextlib.suppress(EOFError, OSError):
        while cue.pipe.recv() == "begin":
            cue.begin.set()
    cue.stop.set()
    cue.begin.set()
    parent = multiprocessing.parent_process()
    end = time.monotonic() + GRACE_SECONDS
    # Without a parent nobody waits: every state is safe to leave at once, and the port must be free again.
    while parent is not None and parent.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(1)


def _receiver(settings: Settings, cue: _Cue) -> None:
    from dicomai.database import Database
    from dicomai.receiver import serve as receive

    cue.wait()
    way_in = _receiver_named(cue.number)
    with locked(settings.node.storage / f"{way_in}.lock", patience=10.0):
        database = Database(settings.node.worklist_url)
        if cue.number == 1:
            _clear_up_after_others(settings, database)
        intake = intake_of(settings, Store(settings.node.storage, way_in), database)
        intake.recover()
        # What is there now stays; what comes with each instance goes by itself, and seldom in cycles.
        gc.freeze()
        gc.set_threshold(50_000)
        receive(settings, intake, cue.stop, lambda _: cue.ready(), _services(settings, database, cue.number), cue.door)


_OTHER_WAYS_IN = frozenset({"console", "fetch"})


def _receiver_named(number: int) -> str:
    return "receiver" if number == 1 else f"receiver-{number}"


def _clear_up_after_others(settings: Settings, database: "Database") -> None:
    """Clear up after every other way in, before anything is planned on what it may have brought.

    A receiver of an earlier start that had more of them may still be ending, and is waited for; what else is at work
    clears up by itself.
    """
    ours = {_receiver_named(number + 1) for number in range(settings.receiver.processes)} - {_receiver_named(1)}
    for way_in in sorted(folder.name for folder in (settings.node.storage / "incoming").iterdir()):
        is_leaver = way_in.startswith(f"{_receiver_named(1)}-") and way_in not in ours
        if not is_leaver and way_in not in ours | _OTHER_WAYS_IN:
            continue
        try:
            with locked(settings.node.storage / f"{way_in}.lock", patience=10.0 if is_leaver else 0.0):
                intake_of(settings, Store(settings.node.storage, way_in), database).recover()
        except ConfigurationError:
            if is_leaver:
                raise


def _services(settings: Settings, database: "Database", number: int) -> "list[Service]":
    """Make what a receiver offers beside Verification and Storage."""
    services: list[Service] = []
    if settings.receiver.procedure_steps:
        from dicomai.database.announcements import Announcements
        from dicomai.receiver.procedure_steps import ProcedureSteps

        services.append(ProcedureSteps(Announcements(database)))
    if settings.receiver.availability:
        from dicomai.database.announcements import Announcements
        from dicomai.receiver.availability import Availability

        services.append(Availability(Announcements(database)))
    if settings.receiver.commitment:
        from dicomai.database.commitments import Commitments
        from dicomai.receiver.commitment import StorageCommitment

        commitments = Commitments(database)
        if number == 1:
            commitments.recover()
        services.append(StorageCommitment(settings, Store(settings.node.storage), commitments))
    if any(isinstance(one, DicomDestination) and one.commitment for one in settings.destination):
        from dicomai.database.commitments_asked import AskedCommitments
        from dicomai.receiver.commitment_reports import CommitmentReports

        services.append(CommitmentReports(AskedCommitments(database)))
    return services


def _planner(settings: Settings, cue: _Cue) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    from dicomai.database import Database
    from dicomai.planner import Planner

    cue.wait()
    planner = Planner(
        Store(settings.node.storage),
        Database(settings.node.worklist_url),
        settings.routes,
        bundles_of(settings),
        quiet_period=settings.receiver.quiet_period,
        lost_period=settings.receiver.lost_period,
        forwards=settings.forwards,
    )
    scheduler = BackgroundScheduler(timezone="UTC")
    # A sweep that is still under way is no news.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    scheduler.add_job(planner.sweep, "interval", seconds=0.5, max_instances=1, coalesce=True, misfire_grace_time=None)
    _count(settings, scheduler)
    scheduler.start()
    cue.ready()
    cue.stop.wait()
    scheduler.shutdown()


def _count(settings: Settings, scheduler: "BackgroundScheduler") -> None:
    """Ask the sources of which it is wanted for counts, each on a thread of its own."""
    asked = [source for source in settings.source if source.counts]
    if not asked:
        return
    from apscheduler.executors.pool import ThreadPoolExecutor

    from dicomai.counts import INTERVAL, Counts
    from dicomai.database import Database
    from dicomai.database.announcements import Announcements
    from dicomai.sources.dimse import series_counts

    announcements = Announcements(Database(settings.node.worklist_url))
    scheduler.add_executor(ThreadPoolExecutor(len(asked)), "counts")
    for source in asked:

        def ask(study: str, source: SourceSettings = source) -> dict[str, int]:
            patience = min(source.timeout, GRACE_SECONDS / 2)  # at the end of the role it is waited for
            return series_counts(source, settings.node.ae_title, study, patience, settings.tls)

        counts = Counts(announcements, source.name, source.ae_title, ask)
        scheduler.add_job(
            counts.sweep, "interval", seconds=INTERVAL, executor="counts",
            max_instances=1, coalesce=True, misfire_grace_time=None,
        )  # fmt: skip


def _worker(settings: Settings, cue: _Cue) -> None:
    from dicomai import inference, weights
    from dicomai.database import Database
    from dicomai.worker import Worker

    def load_engine(one: "Bundle") -> inference.Engine:
        logger.info("loading a model", model=one.name, version=one.version)
        return inference.load(one, weights.located(one, settings.node.storage), settings.worker.device)

    os.nice(_WORKER_NICENESS)
    cue.wait()
    worker = Worker(
        Store(settings.node.storage),
        Database(settings.node.worklist_url),
        bundles_of(settings),
        settings.worker,
        timezone=settings.node.timezone,
        load_engine=load_engine,
        destinations={one.name: one.profile for one in settings.destination},
    )
    cue.ready()
    worker.run(cue.stop)


def _delivery(settings: Settings, cue: _Cue) -> None:
    from dicomai import delivery
    from dicomai.database import Database, owner_name
    from dicomai.database.deliveries import Deliveries
    from dicomai.destinations import open_destination
    from dicomai.forwarder import Forwarder
    from dicomai.withdrawer import Withdrawer

    cue.wait()
    store = Store(settings.node.storage)
    database = Database(settings.node.worklist_url)
    lanes = [
        delivery.Delivery(
            store,
            database,
            open_destination(
                one, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout, tls=settings.tls
            ),
            settings.delivery,
            only_deidentified=one.name in settings.nameless,
        )
        for one in settings.destination
    ]
    left = Deliveries(database).orphaned(
        [one.name for one in settings.destination], owner_name("delivery", os.getpid())
    )
    if left:
        logger.warning(
            "deliveries go to destinations that are not in the configuration",
            deliveries=left,
            remedy="see the reasons in `dicomai worklist`: add the destinations, or cancel the items",
        )
    withdrawer = Withdrawer(store, database, timezone=settings.node.timezone)
    forwarder = Forwarder(store, database, settings.forwards)
    cue.ready()
    delivery.run([*lanes, withdrawer, forwarder, _prober(settings, database)], cue.stop)


def _prober(settings: Settings, database: "Database") -> "Prober":
    """Make what asks the DICOM destinations what they accept."""
    from dicomai.destinations.dimse.probe import probe
    from dicomai.prober import Prober
    from dicomai.profiles import Probe, denied

    def asked(one: DicomDestination) -> Callable[[], frozenset[tuple[str, str]]]:
        patience = min(settings.delivery.timeout, GRACE_SECONDS / 2)  # at the end of the role it is waited for
        return lambda: probe(one, calling_ae=settings.node.ae_title, timeout=patience, tls=settings.tls)

    def judged(one: DicomDestination) -> Callable[[Probe], str]:
        return lambda last: denied(one.profile, last, one.services)

    dicom = [one for one in settings.destination if isinstance(one, DicomDestination)]
    return Prober(database, {one.name: (judged(one), asked(one)) for one in dicom})


def _console(settings: Settings, cue: _Cue) -> None:
    from dicomai.console import Console

    cue.wait()
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(_dicomweb(settings)) if settings.console.dicomweb else None
        console = Console(settings, web)
        cue.ready()
        console.run(cue.stop)


@contextlib.contextmanager
def _dicomweb(settings: Settings) -> "Iterator[DicomWeb]":
    from dicomai.console.dicomweb import DicomWeb
    from dicomai.database import Database

    with locked(settings.node.storage / "console.lock", patience=10.0):
        store, database = Store(settings.node.storage, way_in="console"), Database(settings.node.worklist_url)
        intake = intake_of(settings, store, database)
        intake.recover()
        yield DicomWeb(settings, intake, store, database)


def intake_of(settings: Settings, store: Store, database: "Database") -> "Intake":
    """Make a node's way in."""
    from dicomai.intake import Intake

    quiet = min([settings.receiver.quiet_period, *(route.quiet_period for route in settings.routes)])
    return Intake(
        store,
        database,
        quiet_period=quiet,
        min_free_bytes=settings.receiver.min_free_bytes,
        max_instance_bytes=settings.receiver.max_instance_bytes,
    )


_ROLES: dict[Role, Callable[[Settings, _Cue], None]] = {
    Role.RECEIVER: _receiver,
    Role.PLANNER: _planner,
    Role.WORKER: _worker,
    Role.DELIVERY: _delivery,
    Role.CONSOLE: _console,
}


def bundles_of(settings: Settings) -> "dict[str, Bundle]":
    """Load the bundle of every model that a route names.

    Raises:
        BundleError: one is missing or not sound.
    """
    from dicomai import bundle

    folder = settings.node.models or bundle.packaged()
    return {name: bundle.find(name, folder) for name in sorted({route.model for route in settings.route})}


@contextlib.contextmanager
def locked(path: Path, *, patience: float | None = None) -> Iterator[None]:
    """Hold a lock file for as long as the block runs.

    Args:
        path: the file.
        patience: how many seconds to wait for another holder; None for ever.

    Raises:
        ConfigurationError: another process kept the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        end = None if patience is None else time.monotonic() + patience
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if end is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if end is not None and time.monotonic() >= end:
                    raise ConfigurationError(
                        f"Another node holds {path}: one storage serves one node; stop the other first."
                    ) from None
                time.sleep(0.1)
        yield
