"""Composition root: starts the roles of a node as processes, watches them, and stops them in order.

The parent imports neither torch nor pynetdicom. Every role is spawned, never forked, makes its own engine, and ends
when the pipe to its parent closes: a killed parent leaves no child on the port.
"""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import structlog

from dicomai import bundle, log, weights
from dicomai.bundle import Bundle
from dicomai.config import Settings
from dicomai.database import Database
from dicomai.database.worklist import Worklist
from dicomai.errors import ConfigurationError, DicomaiError, StoreError
from dicomai.store import Store

logger = structlog.get_logger()


class Role(StrEnum):
    """What a process of the node does."""

    RECEIVER = "receiver"
    PLANNER = "planner"
    WORKER = "worker"
    DELIVERY = "delivery"
    CONSOLE = "console"


# A node stops from the way in to the way out, so that nothing is begun that cannot be finished.
STOPPING_ORDER = (Role.RECEIVER, Role.PLANNER, Role.WORKER, Role.DELIVERY, Role.CONSOLE)

_GRACE_SECONDS = 30.0
_LONGEST_PAUSE = 60.0
_WRONG_CALL = 2


@dataclass
class _Child:
    """A role's process, and the pipe whose end it takes for its parent's."""

    role: Role
    process: BaseProcess
    pipe: Connection
    started: float
    failures: int = 0
    ready: bool = False


@dataclass
class Node:
    """A running node: `start`, `watch`, `stop`.

    Attributes:
        settings: the configuration.
        roles: which processes to run.
    """

    settings: Settings
    roles: tuple[Role, ...] = STOPPING_ORDER
    _children: dict[Role, _Child] = field(default_factory=dict)
    _stopping: bool = False

    def prepare(self) -> None:
        """Check models, make the storage, migrate the database, and let go of what dead workers held.

        Raises:
            DicomaiError: something is missing; nothing was started.
        """
        bundles = bundles_of(self.settings)
        for one in bundles.values():
            if Role.WORKER in self.roles:
                weights.located(one, self.settings.node.storage)
        Store(self.settings.node.storage)
        with locked(self.settings.node.storage / "migration.lock"):
            database = Database(self.settings.node.worklist_url)
            database.migrate()
        worklist = Worklist(database)
        for owner in worklist.owners():
            if _is_gone(owner):
                logger.info(
                    "a worker of the last run is gone; its items go on", owner=owner, items=worklist.expire(owner)
                )
        database.close()

    def start(self) -> None:
        """Start every role; returns when each says that it is ready.

        Raises:
            ConfigurationError: a role found the configuration wrong.
            DicomaiError: a role did not start.
        """
        for role in self.roles:
            self._spawn(role)
        for role in self.roles:
            self._await(role)
        if self._stopping:
            return
        settings = self.settings.node
        logger.info("node started", ae_title=settings.ae_title, port=settings.port, roles=[r.value for r in self.roles])

    def watch(self) -> int:
        """Wait until told to stop; a role that ends by itself is started again, later each time.

        Returns:
            The exit status.
        """
        while not self._stopping:
            sentinels = {child.process.sentinel: role for role, child in self._children.items()}
            for ended in wait(list(sentinels), timeout=1.0):
                self._revive(sentinels[cast("int", ended)])
        return 0

    def request_stop(self) -> None:
        """Let `watch` return; safe in a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """Stop every role in order: no more in, then what is under way, then out."""
        self._stopping = True
        for role in STOPPING_ORDER:
            child = self._children.pop(role, None)
            if child is None:
                continue
            child.pipe.close()
            child.process.join(_GRACE_SECONDS)
            if child.process.is_alive():
                logger.warning("a role does not end; it is killed", role=role.value)
                child.process.kill()
                child.process.join()
        logger.info("node stopped")

    def pids(self) -> dict[str, int]:
        """The process of every role."""
        return {role.value: child.process.pid or 0 for role, child in self._children.items()}

    def _spawn(self, role: Role, failures: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_run_role, args=(role.value, self.settings, theirs), name=f"dicomai {role.value}"
        )
        process.start()
        theirs.close()
        self._children[role] = _Child(role, process, ours, time.monotonic(), failures)

    def _await(self, role: Role) -> None:
        child = self._children[role]
        ready: list[object] = []
        while not ready:
            if self._stopping:
                return
            ready = list(wait([child.pipe, child.process.sentinel], timeout=0.5))
        if child.pipe in ready:
            with contextlib.suppress(EOFError):
                child.ready = child.pipe.recv() == "ready"
        if not child.ready:
            child.process.join()
            if child.process.exitcode == _WRONG_CALL:
                raise ConfigurationError(f"The {role.value} did not start; its last line says why.")
            raise StoreError(f"The {role.value} did not start; its last line says why.")

    def _revive(self, role: Role) -> None:
        child = self._children[role]
        child.process.join()
        lived = time.monotonic() - child.started
        failures = child.failures + 1 if lived < _LONGEST_PAUSE else 1
        pause = min(_LONGEST_PAUSE, 2.0 ** (failures - 1))
        logger.error(
            "a role ended by itself; it starts again",
            role=role.value,
            exit_code=child.process.exitcode,
            pause_s=pause,
        )
        child.pipe.close()
        end = time.monotonic() + pause
        while time.monotonic() < end:
            if self._stopping:
                return
            time.sleep(0.1)
        self._spawn(role, failures)


def serve(settings: Settings, roles: Sequence[Role] = STOPPING_ORDER) -> int:
    """Run a node until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after an orderly stop.

    Raises:
        DicomaiError: it did not start.
    """
    node = Node(settings, tuple(roles))
    node.prepare()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.request_stop())
    try:
        node.start()
        return node.watch()
    finally:
        node.stop()


def bundles_of(settings: Settings) -> dict[str, Bundle]:
    """Load the bundle of every model that a route names.

    Raises:
        BundleError: one is missing or not sound.
    """
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
                        f"Another process holds {path}: one storage has one receiver; stop the other node first."
                    ) from None
                time.sleep(0.1)
        yield


def _is_gone(owner: str) -> bool:
    """Tell whether the process behind a lease has ended, as far as this host can know."""
    host, _, rest = owner.partition("/")
    pid = rest.rpartition("/")[2]
    if host != socket.gethostname()[:64] or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _run_role(name: str, settings: Settings, pipe: Connection) -> None:
    """Be one role; the entry of a spawned process."""
    role = Role(name)
    # The parent alone hears the terminal's Ctrl-C and tells each role in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log.configure(settings.node.log, role=role.value)
    stop = threading.Event()
    threading.Thread(target=_watch_parent, args=(pipe, stop), daemon=True).start()
    try:
        _ROLES[role](settings, stop, lambda: pipe.send("ready"))
    except ConfigurationError as error:
        logger.error("cannot start", error=str(error))
        sys.exit(_WRONG_CALL)
    except DicomaiError as error:
        logger.error("ended", error=str(error))
        sys.exit(1)


def _watch_parent(pipe: Connection, stop: threading.Event) -> None:
    """Stop when the parent closes its end of the pipe, on purpose or by dying; then end within the grace."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    stop.set()
    parent = multiprocessing.parent_process()
    end = time.monotonic() + _GRACE_SECONDS
    # Without a parent nobody waits: every state is safe to leave at once, and the port must be free again.
    while parent is not None and parent.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(1)


def _receiver(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    from dicomai.intake import Intake  # noqa: PLC0415  each role imports what it needs and no more
    from dicomai.receiver import serve as receive  # noqa: PLC0415

    with locked(settings.node.storage / "receiver.lock", patience=10.0):
        quiet = min([settings.receiver.quiet_period, *(route.quiet_period for route in settings.routes)])
        intake = Intake(
            Store(settings.node.storage),
            Database(settings.node.worklist_url),
            quiet_period=quiet,
            min_free_bytes=settings.receiver.min_free_bytes,
        )
        intake.recover()
        receive(settings, intake, stop, lambda _: ready())


def _planner(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler  # noqa: PLC0415

    from dicomai.planner import Planner  # noqa: PLC0415

    planner = Planner(
        Store(settings.node.storage),
        Database(settings.node.worklist_url),
        settings.routes,
        bundles_of(settings),
        quiet_period=settings.receiver.quiet_period,
        lost_period=settings.receiver.lost_period,
    )
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(planner.sweep, "interval", seconds=0.5, max_instances=1, coalesce=True, misfire_grace_time=None)
    scheduler.start()
    ready()
    stop.wait()
    scheduler.shutdown()


def _worker(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    from dicomai import inference  # noqa: PLC0415
    from dicomai.worker import Worker  # noqa: PLC0415

    def load_engine(one: Bundle) -> inference.Engine:
        logger.info("loading a model", model=one.name, version=one.version)
        return inference.load(one, weights.located(one, settings.node.storage), settings.worker.device)

    worker = Worker(
        Store(settings.node.storage),
        Database(settings.node.worklist_url),
        bundles_of(settings),
        settings.worker,
        timezone=settings.node.timezone,
        load_engine=load_engine,
    )
    ready()
    worker.run(stop)


def _delivery(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    from dicomai import delivery  # noqa: PLC0415
    from dicomai.destinations import open_destination  # noqa: PLC0415

    store = Store(settings.node.storage)
    database = Database(settings.node.worklist_url)
    lanes = [
        delivery.Delivery(
            store,
            database,
            open_destination(one, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout),
            settings.delivery,
        )
        for one in settings.destination
    ]
    ready()
    delivery.run(lanes, stop)


def _console(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    from dicomai.console import Console  # noqa: PLC0415

    console = Console(settings)
    ready()
    console.run(stop)


_ROLES: dict[Role, Callable[[Settings, threading.Event, Callable[[], None]], None]] = {
    Role.RECEIVER: _receiver,
    Role.PLANNER: _planner,
    Role.WORKER: _worker,
    Role.DELIVERY: _delivery,
    Role.CONSOLE: _console,
}
