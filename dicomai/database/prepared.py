"""Statements that are run thousands of times: compiled once, then given to the driver as they are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

Run = Callable[[sa.Executable, Mapping[str, Any]], Iterable[tuple[Any, ...]]]
"""Runs a statement with its parameters; gives the rows, if it has any."""


class Prepared:
    """Statements as their driver wants them, each compiled when it is first run."""

    def __init__(self) -> None:
        """Start without any."""
        self._compiled: dict[sa.Executable, _Compiled] = {}

    def on(self, connection: sa.Connection) -> Run:
        """Run statements in the transaction of a connection; they raise as the connection itself does."""
        cursor = connection.connection.cursor()
        driver = connection.dialect.loaded_dbapi

        def run(statement: sa.Executable, parameters: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
            compiled = self._compiled.get(statement)
            if compiled is None:
                compiled = self._compiled[statement] = _Compiled(statement, connection.dialect)
            try:
                cursor.execute(compiled.text, compiled.bind(parameters))
                return cursor.fetchall() if cursor.description else ()
            except driver.IntegrityError as error:
                raise IntegrityError(compiled.text, None, error) from error
            except driver.Error as error:
                raise DBAPIError(compiled.text, None, error) from error

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
