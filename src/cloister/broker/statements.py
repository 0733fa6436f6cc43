"""The broker's statements: written once for both databases, compiled once, run by the driver.

SQLAlchemy writes them for SQLite and PostgreSQL alike, and keeps the connections. What it does
around each call besides takes several times as long as SQLite needs for the statement, and one
release is a dozen of them.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any, TypeAlias

from sqlalchemy import Dialect
from sqlalchemy.sql import ClauseElement

Row: TypeAlias = Any
"""A named tuple of a result's columns."""


class Prepared:
    """A statement that is compiled once for each kind of database."""

    __slots__ = ("_made", "_rows", "_statement")

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._made: dict[str, tuple[str, dict[str, Any]]] = {}
        self._rows: dict[str, Any] = {}

    def text(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The statement as this database reads it, and the values that stand in it already."""
        found = self._made.get(dialect.name)
        if found is None:
            compiled: Any = self._statement.compile(dialect=dialect)
            binds = compiled.bind_names.items()
            given = {name: bind.effective_value for bind, name in binds if not bind.required}
            found = self._made[dialect.name] = (compiled.string, given)
        return found

    def row(self, dialect: Dialect, description: Any) -> Any:
        """What makes a row of this statement's from a tuple; `description` is the cursor's."""
        found = self._rows.get(dialect.name)
        if found is None:
            kind = namedtuple("Row", [column[0] for column in description])  # type: ignore[misc]
            found = self._rows[dialect.name] = kind._make
        return found


Statement: TypeAlias = Prepared | ClauseElement


class Connection:
    """A transaction that is open, as statements see it. Raises the driver's own errors."""

    __slots__ = ("_dialect", "_driver")

    def __init__(self, driver: Any, dialect: Dialect) -> None:
        self._driver = driver
        self._dialect = dialect

    def run(self, statement: Statement, /, **values: Any) -> None:
        """Run what has no result."""
        self._run(_prepared(statement), values).close()

    def first(self, statement: Statement, /, **values: Any) -> Row | None:
        """The first row of a result, or None."""
        prepared = _prepared(statement)
        cursor = self._run(prepared, values)
        row = cursor.fetchone()
        made = None if row is None else prepared.row(self._dialect, cursor.description)(row)
        cursor.close()
        return made

    def each(self, statement: Statement, /, **values: Any) -> Iterator[Row]:
        """All rows of a result, one after the other."""
        prepared = _prepared(statement)
        cursor = self._run(prepared, values)
        make = prepared.row(self._dialect, cursor.description)
        for row in cursor:
            yield make(row)
        cursor.close()

    def _run(self, prepared: Prepared, values: dict[str, Any]) -> Any:
        text, given = prepared.text(self._dialect)
        cursor = self._driver.cursor()
        cursor.execute(text, {**given, **values})
        return cursor


def _prepared(statement: Statement) -> Prepared:
    return statement if isinstance(statement, Prepared) else Prepared(statement)
