"""Composition root: starts the roles of a node as processes, watches them, and stops them in order.

The parent imports neither torch nor pynetdicom. Every role is spawned, never forked, makes its own engine, and ends
when the pipe to its parent closes: a killed parent leaves no child on the port.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import structlog

from dicomai.config import Settings
from dicomai.errors import ConfigurationError, StoreError
from dicomai.roles import GRACE_SECONDS, WRONG_CALL, Role, bundles_of, locked, run_role
from dicomai.store import Store

__all__ = ["STOPPING_ORDER", "Node", "Role", "bundles_of", "locked", "serve"]

# ruff: noqa: PLC0415  the receiver is spawned before this process imports what else it needs

logger = structlog.get_logger()


# A node stops from the way in to the way out, so that nothing is begun that cannot be finished.
STOPPING_ORDER = (Role.RECEIVER, Role.PLANNER, Role.WORKER, Role.DELIVERY, Role.CONSOLE)

# These clear up, or look at everything that is due: two at once on one storage would be at cross purposes.
_ONE_EACH = (Role.RECEIVER, Role.PLANNER)

_LONGEST_PAUSE = 60.0


@dataclass
class _Child:
    """A role's process, and the pipe whose end it takes for its parent's.

    Attributes:
        number: which of the role's processes it is, from 1; there are several receivers.
    """

    role: Role
    number: int
    process: BaseProcess
    pipe: Connection
    started: float
    failures: int = 0
    ready: bool = False
    again_at: float | None = None  # time.monotonic() when one that ended by itself is started again


@dataclass
class Node:
    """A running node: `start`, `watch`, `stop`; in the end `stop` in any case.

    Attributes:
        settings: the configuration.
        roles: which processes to run.
    """

    settings: Settings
    roles: tuple[Role, ...] = STOPPING_ORDER
    _children: dict[tuple[Role, int], _Child] = field(default_factory=dict)
    _door: socket.socket | None = None  # what the receivers listen on together
    _started: bool = False
    _stopping: bool = False
    _locks: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> None:
        """Start every role; returns when each says that it is ready.

        The receiver comes first, since senders wait for it: it is spawned, and imports what it needs, while this
        process checks and migrates; no role begins before that is done.

        Raises:
            ConfigurationError: the configuration is wrong, or a role found it so.
            DicomaiError: something is missing, or a role did not start.
        """
        Store(self.settings.node.storage)
        for role in _ONE_EACH:
            if role in self.roles:
                lock = self.settings.node.storage / f"node-{role.value}.lock"
                self._locks.enter_context(locked(lock, patience=0.0))
        first: list[_Child] = []
        if Role.RECEIVER in self.roles:
            self._door = _door(self.settings)
            first = [self._spawn(Role.RECEIVER)]
        self._prepare()
        self._started = True
        for child in first:
            _begin(child)
            self._await(child)
        more = [] if not first else [(Role.RECEIVER, n + 2) for n in range(self.settings.receiver.processes - 1)]
        more += [(role, 1) for role in self.roles if role is not Role.RECEIVER]
        others = [self._spawn(role, number) for role, number in more if not self._stopping]
        for child in others:
            _begin(child)
        for child in others:
            self._await(child)
        if self._stopping:
            return
        settings = self.settings.node
        logger.info("node started", ae_title=settings.ae_title, port=settings.port, roles=[r.value for r in self.roles])

    def _prepare(self) -> None:
        """Check models, migrate the database, and let go of what dead workers held.

        Raises:
            DicomaiError: something is missing.
        """
        from dicomai import weights
        from dicomai.database import Database

        storage = self.settings.node.storage
        if {Role.PLANNER, Role.WORKER} & set(self.roles):
            for one in bundles_of(self.settings).values():
                if Role.WORKER in self.roles:
                    weights.located(one, storage)
        with locked(storage / "migration.lock"):
            database = Database(self.settings.node.worklist_url)
            database.migrate()
        database.close()
        self._let_go()

    def watch(self) -> int:
        """Wait until told to stop; a role that ends by itself is started again, later each time.

        Returns:
            The exit status.
        """
        while not self._stopping:
            alive = {c.process.sentinel: c for c in self._children.values() if c.again_at is None}
            for ended in wait(list(alive), timeout=0.2):
                self._note_end(alive[cast("int", ended)])
            for child in list(self._children.values()):
                if child.again_at is not None and time.monotonic() >= child.again_at:
                    _begin(self._spawn(child.role, child.number, child.failures))
        return 0

    def request_stop(self) -> None:
        """Let `watch` return; safe in a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """Stop every role in order: no more in, then what is under way, then out."""
        self._stopping = True
        if self._door is not None:
            self._door.close()
        for role in STOPPING_ORDER:
            ending = [child for child in self._children.values() if child.role is role]
            for child in ending:
                child.pipe.close()
            for child in ending:
                child.process.join(GRACE_SECONDS)
                if child.process.is_alive():
                    logger.warning("a role does not end; it is killed", role=role.value)
                    child.process.kill()
                    child.process.join()
        self._children.clear()
        self._locks.close()
        if self._started:
            logger.info("node stopped")

    def _spawn(self, role: Role, number: int = 1, failures: int = 0) -> _Child:
        """Spawn a role; it begins when its pipe says so."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        door = self._door if role is Role.RECEIVER else None
        process = context.Process(
            target=run_role, args=(role.value, number, self.settings, theirs, door), name=f"dicomai {role.value}"
        )
        process.start()
        theirs.close()
        child = self._children[role, number] = _Child(role, number, process, ours, time.monotonic(), failures)
        return child

    def _await(self, child: _Child) -> None:
        role = child.role
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
            if child.process.exitcode == WRONG_CALL:
                raise ConfigurationError(f"The {role.value} did not start; its last line says why.")
            raise StoreError(f"The {role.value} did not start; its last line says why.")

    def _note_end(self, child: _Child) -> None:
        """Set down when a role that ended by itself starts again; the other roles are watched meanwhile."""
        child.process.join()
        lived = time.monotonic() - child.started
        child.failures = child.failures + 1 if lived < _LONGEST_PAUSE else 1
        pause = min(_LONGEST_PAUSE, 2.0 ** (child.failures - 1))
        logger.error(
            "a role ended by itself; it starts again",
            role=child.role.value,
            exit_code=child.process.exitcode,
            pause_s=pause,
        )
        child.pipe.close()
        child.again_at = time.monotonic() + pause
        try:
            self._let_go()
        except StoreError as error:
            logger.error("its items wait until their lease ends", error=str(error))

    def _let_go(self) -> None:
        """Let go of what workers held whose process is gone, so that nobody waits for their leases to end."""
        from dicomai.database import Database
        from dicomai.database.worklist import Worklist

        database = Database(self.settings.node.worklist_url)
        try:
            worklist = Worklist(database)
            for owner in worklist.owners():
                if _is_gone(owner):
                    logger.info("a worker is gone; its items go on", owner=owner, items=worklist.expire(owner))
        finally:
            database.close()


def _door(settings: Settings) -> socket.socket:
    """Take the port, before anybody listens on it; every receiver accepts from it whoever is nobody else's yet.

    It is the parent's: no other node can have the port, and who knocks while a receiver is started anew waits.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    node = settings.node
    try:
        found = socket.getaddrinfo(node.host or None, node.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name such as localhost means its IPv4 address where it has both, as it does to most senders.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        with contextlib.ExitStack() as unless_bound:
            door = unless_bound.enter_context(socket.socket(family, kind, protocol))
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            unless_bound.pop_all()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {node.host} port {node.port} ({error.strerror or error}): end what uses it, or set"
            " node.host and node.port."
        ) from error
    door.setblocking(False)
    return door


def _begin(child: _Child) -> None:
    """Let a role begin; one that has ended already is found out by whoever waits for it."""
    with contextlib.suppress(OSError):
        child.pipe.send("begin")


def serve(settings: Settings, roles: Sequence[Role] = STOPPING_ORDER) -> int:
    """Run a node until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after an orderly stop.

    Raises:
        DicomaiError: it did not start.
    """
    node = Node(settings, tuple(roles))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.request_stop())
    try:
        node.start()
        return node.watch()
    finally:
        node.stop()


def _is_gone(owner: str) -> bool:
    """Tell whether the process behind a lease has ended, as far as this host can know."""
    host, _, rest = owner.partition("/")
    pid = rest.rpartition("/")[2]
    if host != socket.gethostname()[:64] or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
        # One that ended and that nobody has asked about yet is still there by name.
        return ") Z" in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's, or a host without /proc
        return False
