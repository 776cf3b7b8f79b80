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
    """A role's process, and the pipe whose end it takes for its parent's."""

    role: Role
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
    _children: dict[Role, _Child] = field(default_factory=dict)
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
        receives = Role.RECEIVER in self.roles
        if receives:
            self._spawn(Role.RECEIVER)
        self._prepare()
        self._started = True
        if receives:
            _begin(self._children[Role.RECEIVER])
            self._await(Role.RECEIVER)
        others = [role for role in self.roles if role is not Role.RECEIVER and not self._stopping]
        for role in others:
            _begin(self._spawn(role))
        for role in others:
            self._await(role)
        if self._stopping:
            return
        settings = self.settings.node
        logger.info("node started", ae_title=settings.ae_title, port=settings.port, roles=[r.value for r in self.roles])

    def _prepare(self) -> None:
        """Check models, make the storage, migrate the database, and let go of what dead workers held.

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
        Store(storage)
        for role in _ONE_EACH:
            if role in self.roles:
                self._locks.enter_context(locked(storage / f"node-{role.value}.lock", patience=0.0))
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
            alive = {c.process.sentinel: role for role, c in self._children.items() if c.again_at is None}
            for ended in wait(list(alive), timeout=0.2):
                self._note_end(self._children[alive[cast("int", ended)]])
            for role, child in self._children.items():
                if child.again_at is not None and time.monotonic() >= child.again_at:
                    _begin(self._spawn(role, child.failures))
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
            child.process.join(GRACE_SECONDS)
            if child.process.is_alive():
                logger.warning("a role does not end; it is killed", role=role.value)
                child.process.kill()
                child.process.join()
        self._locks.close()
        if self._started:
            logger.info("node stopped")

    def _spawn(self, role: Role, failures: int = 0) -> _Child:
        """Spawn a role; it begins when its pipe says so."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_role, args=(role.value, self.settings, theirs), name=f"dicomai {role.value}"
        )
        process.start()
        theirs.close()
        child = self._children[role] = _Child(role, process, ours, time.monotonic(), failures)
        return child

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
