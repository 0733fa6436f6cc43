"""Statements that are compiled once: a text for each database, and no value left out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import bindparam, create_engine, insert, select, text

from cloister.broker import tables
from cloister.broker.statements import Connection, Prepared

ENGINE = create_engine("sqlite://", paramstyle="named")
ADD = Prepared(insert(tables.versions))
FIND = Prepared(select(tables.versions).where(tables.versions.c.uri == bindparam("of_uri")))
ROW: dict[str, Any] = {"uri": "a", "version": 1, "sealed": b"s", "created": 5, "not_after": None}


@pytest.fixture
def connection() -> Iterator[Connection]:
    driver = sqlite3.connect(":memory:")
    driver.execute("CREATE TABLE broker_versions (uri, version, sealed, created, not_after)")
    yield Connection(driver, ENGINE.dialect)
    driver.close()


def test_rows_name_their_columns(connection: Connection) -> None:
    connection.run(ADD, **ROW)
    connection.run(ADD, **ROW | {"version": 2})
    first = connection.first(FIND, of_uri="a")
    assert first is not None
    assert first._asdict() == ROW
    assert [row.version for row in connection.each(FIND, of_uri="a")] == [1, 2]
    assert connection.first(FIND, of_uri="b") is None
    assert list(connection.each(FIND, of_uri="b")) == []


def test_a_value_that_is_left_out_is_no_null(connection: Connection) -> None:
    connection.run(ADD, **ROW)
    less = {name: value for name, value in ROW.items() if name != "not_after"}
    with pytest.raises(sqlite3.ProgrammingError):
        connection.run(ADD, **less)
    with pytest.raises(sqlite3.ProgrammingError):
        connection.first(FIND)


def test_nothing_of_one_run_is_left_in_the_next(connection: Connection) -> None:
    """Values belong to the call; those that stand in a statement, to the statement."""
    for uri in ("a", "b"):
        connection.run(ADD, **ROW | {"uri": uri})
        fixed = connection.first(select(tables.versions).where(tables.versions.c.uri == uri))
        found = connection.first(FIND, of_uri=uri)
        assert fixed is not None and found is not None
        assert (fixed.uri, found.uri) == (uri, uri)
    with pytest.raises(sqlite3.ProgrammingError):
        connection.first(FIND)


def test_a_statement_is_compiled_once_for_each_database() -> None:
    from sqlalchemy.dialects import postgresql

    other = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
    here, there = FIND.text(ENGINE.dialect)[0], FIND.text(other)[0]
    assert ":of_uri" in here
    assert "%(of_uri)s" in there
    assert FIND.text(ENGINE.dialect)[0] is here


def test_statements_that_are_not_kept_run_as_well(connection: Connection) -> None:
    connection.run(ADD, **ROW)
    connection.run(text("DELETE FROM broker_versions"))
    assert connection.first(FIND, of_uri="a") is None
