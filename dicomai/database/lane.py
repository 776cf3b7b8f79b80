"""What is written thousands of times: a connection that stays open, statements that are compiled once."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError

Run = Callable[[sa.Executable, Mapping[str, Any]], Iterable[tuple[Any, ...]]]
"""Runs a statement with its parameters; gives the rows, if it has any."""


class Lane:
    """A way for one thread at a time.

    With SQLite its transactions are seen by all and outlive every process, but are durable only after `Database.sync`
    or the next transaction that does not go by a lane: whoever uses it has to know of them otherwise after a power cut.
    With PostgreSQL, whose own processes can be killed, they are durable at once.
    """

    def __init__(self, engine: sa.Engine) -> None:
        """Make it; connects at the first use."""
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._connection: DBAPIConnection | None = None
        self._compiled: dict[sa.Executable, _Compiled] = {}

    @contextlib.contextmanager
    def begin(self) -> Iterator[Run]:
        """Run one transaction that may write; commits at the end, rolls back on an error.

        Raises:
            IntegrityError: another transaction wrote at this moment what has to be unique; nothing was written.
            DBAPIError: the database did not answer or did not commit.
        """
        driver = self._engine.dialect.loaded_dbapi
        try:
            connection = self._connection = self._connection or self._open()
            cursor = connection.cursor()
            if self._is_sqlite:
                cursor.execute("BEGIN IMMEDIATE")
            yield self._on(cursor)
            connection.commit()
        except BaseException as error:
            self.close()
            if isinstance(error, driver.Error):  # as a connection of the engine raises them
                kind = IntegrityError if isinstance(error, driver.IntegrityError) else DBAPIError
                raise kind("a transaction in the lane", None, error) from error
            raise

    def close(self) -> None:
        """Close the connection, and roll back what is not committed; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._engine.dialect.loaded_dbapi.Error):  # it is gone already
                connection.close()

    def _open(self) -> DBAPIConnection:
        lent = self._engine.raw_connection()
        if self._is_sqlite:
            lent.cursor().execute("PRAGMA synchronous=NORMAL")
        connection = lent.dbapi_connection
        lent.detach()  # closed at the end, and not lent to others
        return connection  # type: ignore[return-value]

    def _on(self, cursor: Any) -> Run:
        def run(statement: sa.Executable, parameters: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
            compiled = self._compiled.get(statement)
            if compiled is None:
                compiled = self._compiled[statement] = _Compiled(statement, self._engine.dialect)
            cursor.execute(compiled.text, compiled.bind(parameters))
            return cursor.fetchall() if cursor.description else ()

        return run


class _Compiled:
    def __init__(self, statement: sa.Executable, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        self.text = str(compiled)
        self._order: list[str] | None = compiled.positiontup
        self._convert = {
            name: processor
            for name, bind in compiled.binds.items()
            if (processor := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        }
        self._constants = {name: bind.value for name, bind in compiled.binds.items() if bind.value is not None}

    def bind(self, parameters: Mapping[str, Any]) -> Any:
        """Put parameters into the driver's form."""
        values = {**self._constants, **parameters}
        for name, convert in self._convert.items():
            values[name] = convert(values[name])
        return values if self._order is None else [values[name] for name in self._order]
