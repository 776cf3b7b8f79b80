"""A real node: `dicomai serve` in a process group of its own, on a free port, in a folder of its own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicomai.database import Database
from dicomai.database.overview import Entry, Overview
from dicomai.database.worklist import Worklist
from tests.dimse import HOST, free_port, is_listening

START_SECONDS = 60

# Of everybody whose images these tests send: names, dates of birth, and the IDs that are no common numbers.
PEOPLE = (
    "Jane_Doe", "19660101",  # the 7 T series
    "123565",  # the PD series, whose name is empty
    "Quillfeather", "Zebulon", "19310217", "ACC-QUILL",  # made up here
    "山田", "太郎", "やまだ", "Yamada", "Tarou", "19580704", "PAT-YAMADA",
)  # fmt: skip


@dataclass
class Node:
    """A node and what it leaves behind; started again it finds its storage as it left it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "dicomai.toml"

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def log(self) -> str:
        """All that it ever said."""
        return (self.folder / "node.log").read_text(encoding="utf-8", errors="replace")

    def start(self, *arguments: str, wait: bool = True) -> None:
        """Start it; returns when every role is ready."""
        seen = len(self.log) if (self.folder / "node.log").exists() else 0
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicomai", "serve", "--config", str(self.config), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if wait:
            process = self.process
            until(lambda: '"node started"' in self.log[seen:] or process.poll() is not None, START_SECONDS)
            assert process.poll() is None, f"it did not start:\n{self.log[-3000:]}"

    def stop(self) -> None:
        """Stop it as a service manager does; an orderly stop exits with 0."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0, f"no orderly stop:\n{self.log[-3000:]}"
        self.process = None

    def kill(self) -> None:
        """SIGKILL to parent and children."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self._gone()

    def kill_parent(self) -> None:
        """SIGKILL to the parent alone; its children have to notice."""
        assert self.process is not None
        self.process.kill()
        self._gone()

    def kill_holder(self, role: str) -> None:
        """SIGKILL to the worker or the delivery that has an item under way; the rest of the node goes on."""
        (owner,) = [name for name in self._owners() if f"/{role}/" in name]
        os.kill(int(owner.rpartition("/")[2]), signal.SIGKILL)

    def kill_receivers(self) -> None:
        """SIGKILL to the processes that receive; the rest of the node goes on."""
        for pid in self.receivers():
            os.kill(pid, signal.SIGKILL)

    def receivers(self) -> set[int]:
        """Give the processes that receive: those that listen on the port, less the parent, whose port it is."""
        inodes, found = _listening(self.port), set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if any(str(fd.readlink()) in inodes for fd in Path(f"/proc/{pid}/fd").iterdir()):
                    found.add(pid)
        return found - {self.process.pid if self.process is not None else 0}

    def processes(self) -> list[int]:
        """List its processes that are alive: those of the process group that it was started in."""
        if self.process is None:
            return []
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def entries(self, kind: str = "") -> list[Entry]:
        """Look at the worklist, oldest item first, without a process in between: quick enough to catch a moment."""
        with self._database() as database:
            found = Overview(database).entries()
        return [entry for entry in reversed(found) if kind in {"", entry.kind}]

    def cli(self, *arguments: str, status: int = 0) -> str:
        """Run `dicomai` with this node's configuration; gives what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "dicomai", *arguments, "--config", str(self.config)],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def worklist(self) -> list[dict[str, Any]]:
        """Give what `dicomai worklist list --json` prints, oldest first."""
        listed: list[dict[str, Any]] = json.loads(self.cli("worklist", "list", "--json"))
        return listed[::-1]

    def show(self, number: int) -> dict[str, Any]:
        """Give what `dicomai worklist show ID --json` prints."""
        item: dict[str, Any] = json.loads(self.cli("worklist", "show", str(number), "--json"))
        return item

    def stored(self, sop_instance_uid: str) -> list[bytes]:
        """Give the data sets that are stored under a UID, without preamble and file meta information."""
        files = (self.storage / "instances").glob(f"*/*/{sop_instance_uid}.*.dcm")
        return [data[144 + int.from_bytes(data[140:144], "little") :] for data in map(Path.read_bytes, files)]

    def wait_for(self, condition: Callable[[list[Entry]], Any], seconds: float = 90) -> None:
        """Wait until the worklist is in some state."""
        until(lambda: condition(self.entries()), seconds, lambda: "\n".join(map(str, [*self.entries(), self.log])))

    def refuse_names(self) -> None:
        """Fail if anything of a patient stands in the log."""
        for name in PEOPLE:
            found = re.search(rf"(?<![\d.]){re.escape(name)}(?!\d)", self.log, re.IGNORECASE)
            assert not found, f"{name} in the log: {self.log[max(0, found.start() - 300) : found.end() + 100]}"

    def _gone(self) -> None:
        """Wait for the end of every process, and see that nothing of it is left on the port."""
        assert self.process is not None
        self.process.wait()
        until(lambda: not self.processes(), 10, lambda: f"left over: {self.processes()}")
        self.process = None
        until(lambda: not is_listening(self.port), 10)  # a thread may be in a sync when its process has ended

    def _owners(self) -> list[str]:
        with self._database() as database:
            return Worklist(database).owners()

    @contextlib.contextmanager
    def _database(self) -> Iterator[Database]:
        database = Database(f"sqlite:///{self.storage / 'worklist.db'}")
        try:
            yield database
        finally:
            database.close()


@contextlib.contextmanager
def node(
    folder: Path,
    weights: Path | None = None,
    *,
    routes: Sequence[Mapping[str, Any]] = (),
    destinations: Sequence[Mapping[str, Any]] = (),
    sources: Sequence[Mapping[str, Any]] = (),
    forwards: Sequence[Mapping[str, Any]] = (),
    receiver: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> Iterator[Node]:
    """Prepare a node, not started yet; whatever runs of it at the end is killed, and its log looked through for names.

    Args:
        folder: for its configuration, log and storage.
        weights: the folder `weights` of another storage, to be used here.
        routes: entries of `[[route]]`.
        destinations: entries of `[[destination]]`.
        sources: entries of `[[source]]`.
        forwards: entries of `[[forward]]`.
        receiver: keys of `[receiver]`; a series is complete after one second unless they say otherwise.
        sections: further sections of the configuration.
    """
    ready = Node(folder, free_port())
    ready.storage.mkdir(parents=True)
    if weights is not None:
        (ready.storage / "weights").symlink_to(weights)
    own = {"host": HOST, "port": ready.port, "storage": str(ready.storage), "log": "json"}
    tables = {
        "node": {**own, **sections.pop("node", {})},
        "receiver": {"quiet_period": 1.0, "min_free_bytes": 0, **(receiver or {})},
        "console": {"port": free_port()},
        **sections,
    }
    text = [f"[{name}]\n{_lines(table)}" for name, table in tables.items()]
    text += [f"[[destination]]\n{_lines(one)}" for one in destinations]
    text += [f"[[source]]\n{_lines(one)}" for one in sources]
    text += [f"[[route]]\n{_lines({'model': 'brain_extraction', **one})}" for one in routes]
    text += [f"[[forward]]\n{_lines(one)}" for one in forwards]
    ready.config.write_text("\n".join(text), encoding="utf-8")
    try:
        yield ready
    finally:
        if ready.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ready.process.pid, signal.SIGKILL)
            ready.process.wait()
    ready.refuse_names()


def until(condition: Callable[[], Any], seconds: float, story: Callable[[], str] = lambda: "") -> None:
    """Wait for something that other processes bring about; fails with the story of what there is instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not come about in {seconds} s\n{story()}")
        time.sleep(0.05)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())


def _toml(value: Any) -> str:
    """Write a value as TOML: strings, numbers and arrays look as in JSON, inline tables do not."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def _listening(port: int) -> set[str]:
    """Name the sockets that listen on a port, as links in /proc/PID/fd name them."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in _table(table)]
    return {f"socket:[{row[9]}]" for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A"}


def _table(name: str) -> list[str]:
    path = Path("/proc/net") / name
    return path.read_text().splitlines()[1:] if path.exists() else []


def port_is_free(port: int) -> bool:
    """Tell whether another server could have the port now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True
