"""One database: SQLite (WAL, synchronous=FULL) or PostgreSQL; transactions, its clock, its migrations."""

import contextlib
import os
import secrets
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from dicomai.database.lane import Lane, Run
from dicomai.database.tables import Installation
from dicomai.database.turn import Turn
from dicomai.errors import ConfigurationError, ContendedError, StorageFullError, StoreError

MOST_CONNECTIONS = 8
"""How many connections to PostgreSQL one process has at a time, but for that of its lane."""

_WAIT_SECONDS = 30.0  # until a connection is free
_CLOCK = sa.select(sa.func.clock_timestamp())
_MIGRATION_LOCK = 0xD1C0  # PostgreSQL advisory lock; any number that nobody else in this database uses


class Database:
    """An engine and its transactions. Each process makes its own; none is carried over a fork or a spawn."""

    def __init__(self, url: str) -> None:
        """Make an engine; connects at the first use.

        Raises:
            ConfigurationError: the URL is not one of SQLite or PostgreSQL.
        """
        try:
            parsed = sa.make_url(url)
            if parsed.drivername not in {"sqlite", "postgresql+psycopg"}:
                raise ConfigurationError(
                    f"node.worklist names the database '{parsed.drivername}'; use sqlite:////path or "
                    "postgresql+psycopg://user@host/name."
                )
            self._sqlite = parsed.drivername == "sqlite"
            # PostgreSQL takes 100 connections from all processes together; threads wait for their turn instead.
            options: dict[str, Any] = (
                {"connect_args": {"timeout": 60}, "max_overflow": 64}
                if self._sqlite
                else {"pool_pre_ping": True, "max_overflow": 0}
            )
            self._engine = sa.create_engine(parsed, pool_size=MOST_CONNECTIONS, pool_timeout=_WAIT_SECONDS, **options)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:  # whose text may quote the password
            raise ConfigurationError(
                "node.worklist is no database URL; write sqlite:////path or postgresql+psycopg://user@host/name."
            ) from error
        self.url = url
        self._lane = Lane(self._engine)
        # SQLite has one writer at a time; queueing for it is fairer and quicker than its busy handler's sleeps.
        self._turn: contextlib.AbstractContextManager[Any] = (
            Turn(Path(f"{parsed.database}.turn")) if self._sqlite else contextlib.nullcontext()
        )
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Run one transaction that may write; commits at the end, rolls back on an error.

        Raises:
            StoreError: the database did not answer or did not commit.
            IntegrityError: another transaction wrote at this moment what has to be unique; nothing was written.
        """
        with self._turn, _translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Run one transaction that only reads.

        Raises:
            StoreError: the database did not answer.
        """
        engine = self._engine.execution_options(dicomai_read_only=True)
        with _translated(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def swiftly(self) -> Iterator[tuple[Run, datetime]]:
        """Run one transaction by the lane, which is for one thread at a time; gives what runs statements, and the time.

        Raises:
            StoreError: the database did not answer or did not commit.
            IntegrityError: as with `write`.
        """
        with self._turn, _translated(), self._lane.begin() as run:
            yield run, self.clock(lambda: next(iter(run(_CLOCK, {})))[0])

    @property
    def syncs_later(self) -> bool:
        """Whether what goes by the lane is durable only after `sync`."""
        return self._sqlite

    def sync(self) -> None:
        """Return when all that was committed is durable, also what went by a lane.

        Raises:
            StoreError: the disk failed.
        """
        if not self._sqlite:
            return
        # A transaction that changes nothing would sync nothing. What is no more in the log is in the database, synced:
        # the last connection that closes, as after Ctrl-C in a transaction, takes the log away.
        database = str(self._engine.url.database)
        try:
            try:
                _sync_file(f"{database}-wal")
            except FileNotFoundError:
                _sync_file(database)
        except OSError as error:
            raise StoreError(f"The worklist database cannot be synced ({error.strerror}); check its disk.") from error

    def now(self, session: Session | sa.Connection) -> datetime:
        """Ask the database's clock, by which leases and due times go (SQLite shares the host's)."""
        return self.clock(lambda: session.execute(_CLOCK).scalar_one())

    def clock(self, ask: Callable[[], datetime]) -> datetime:
        """Read the clock; `ask` asks the server, if there is one."""
        return datetime.now(UTC) if self._sqlite else ask().astimezone(UTC)

    def installation(self) -> str:
        """The node's own UUID, made with the database."""
        with self.read() as session:
            return session.execute(sa.select(Installation.uuid)).scalar_one()

    def secret(self) -> bytes:
        """The key of this node's pseudonyms, made with the database: whoever has it can tell whose images they are."""
        with self.read() as session:
            return bytes.fromhex(session.execute(sa.select(Installation.secret)).scalar_one())

    def migrate(self) -> None:
        """Bring the schema to this version; call it before any role starts. Runs twice without harm.

        Raises:
            StoreError: the database does not answer, or was written by a newer dicomai.
        """
        from dicomai.database import schema  # noqa: PLC0415  see there

        with _translated(), self._engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            schema.upgrade(connection)
            if connection.execute(sa.select(sa.func.count()).select_from(Installation)).scalar_one() == 0:
                connection.execute(sa.insert(Installation).values(id=1, uuid=str(uuid.uuid4()), secret=""))
            unset = sa.update(Installation).where(Installation.secret == "")
            connection.execute(unset.values(secret=secrets.token_hex(32)))
            connection.commit()

    def is_current(self) -> bool:
        """Tell whether the schema is this version's."""
        from dicomai.database import schema  # noqa: PLC0415  see there

        engine = self._engine.execution_options(dicomai_read_only=True)
        with _translated(), engine.connect() as connection:
            return schema.is_current(connection)

    def close(self) -> None:
        """Close every connection."""
        self._lane.close()
        self._engine.dispose()
        if isinstance(self._turn, Turn):
            self._turn.close()


def _sync_file(name: str) -> None:
    with Path(name).open("rb") as file:
        os.fsync(file.fileno())


def owner_name(role: str, pid: int) -> str:
    """Name the holder of a lease: host, role and process."""
    return f"{socket.gethostname()[:64]}/{role}/{pid}"


def _prepare_sqlite(connection: Any, record: object) -> None:  # noqa: ARG001  the event's signature
    connection.isolation_level = None  # we begin transactions ourselves, see below
    for pragma in ("foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that begins by reading and then writes can fail with 'database is locked' at any moment;
    # IMMEDIATE takes the writer's place at once.
    read_only = connection.get_execution_options().get("dicomai_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise StoreError(
            f"Every connection of this process to the worklist database was in use for {_WAIT_SECONDS:.0f} s; see what "
            "makes the database slow."
        ) from error
    except DBAPIError as error:
        if isinstance(error, sa.exc.IntegrityError):
            raise
        # The database's message may quote a row's values, so only the kind of error goes on.
        kind = type(error.orig).__name__ if error.orig else type(error).__name__
        if kind == "DeadlockDetected":
            raise ContendedError("The worklist database undid one of two steps that met; try it again.") from error
        if kind == "DiskFull" or getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL":
            raise StorageFullError("The worklist database has no room; free some on its disk.") from error
        raise StoreError(f"The worklist database failed ({kind}); check that it runs and has room.") from error
