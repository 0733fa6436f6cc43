"""A store of an earlier version: brought to this one's format, all of it or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from cloister.broker import audit, tables
from cloister.broker.database import Change, Database
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.store import Store
from cloister.broker.upgrade import upgrade
from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, FetchError
from support.broker import ROOT, SECRET, Bench, bench
from support.postgres import HAVE_POSTGRES, MISSING, postgres_database

ADDED = {"overlap_sha256", "overlap_until"}


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.skipif(not HAVE_POSTGRES, reason=MISSING)),
    ]
)
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "sqlite":
        with bench(f"sqlite:///{tmp_path / 'broker.db'}") as made:
            yield made
        return
    with postgres_database() as address, bench(address) as made:
        yield made


def age(at: Bench, number: int) -> None:
    """Make the store one of an earlier format: format 2 had all but two columns."""
    with at.store.database.engine.begin() as connection:
        for column in sorted(ADDED):
            connection.execute(text(f"ALTER TABLE broker_manifests DROP COLUMN {column}"))
        connection.execute(text(f"UPDATE broker_store SET format = {number}"))


def columns(database: Database) -> set[str]:
    return {column["name"] for column in inspect(database.engine).get_columns("broker_manifests")}


def opened(at: Bench) -> Store:
    return Store.open(at.store.database, ROOT, now=at.clock)


def test_an_upgraded_store_keeps_everything_and_releases(at: Bench) -> None:
    assert at.release().secret == SECRET
    before = at.log()
    age(at, 2)
    with pytest.raises(ConfigurationError, match="cloister broker upgrade") as refused:
        opened(at)
    assert refused.value.code == "broker.format"
    assert upgrade(at.store.database, ROOT, now=at.clock) == tables.FORMAT
    assert columns(at.store.database) == {column.name for column in tables.manifests.columns}
    assert opened(at).identity == at.store.identity
    assert at.release().secret == SECRET
    audit.follow_all(at.store.audit_entries())
    entry = at.log()[len(before)]
    assert entry["event"] == "store.upgraded"
    assert entry["detail"] == {"from": 2, "to": tables.FORMAT}


@pytest.mark.parametrize("number", [1, tables.FORMAT, tables.FORMAT + 1])
def test_other_formats_are_not_upgraded(at: Bench, number: int) -> None:
    if number != tables.FORMAT:
        age(at, number)
    before = at.log(), columns(at.store.database)
    with pytest.raises(ConfigurationError) as refused:
        upgrade(at.store.database, ROOT, now=at.clock)
    assert refused.value.code == "broker.format"
    assert (at.log(), columns(at.store.database)) == before


def state(at: Bench) -> object:
    """Everything in the database: its tables with their columns, and every row."""
    with at.store.database.engine.connect() as connection:
        rows = {
            name: sorted(map(repr, connection.execute(text(f"SELECT * FROM {name}"))))
            for name in sorted(inspect(connection).get_table_names())
        }
    return at.store.database.columns(), rows


ONE = "ALTER TABLE broker_manifests ADD COLUMN overlap_sha256 VARCHAR(64)"
TWO = "ALTER TABLE broker_manifests ADD COLUMN overlap_until BIGINT"
AS_NEW = f"UPDATE broker_store SET format = {tables.FORMAT}"


@pytest.mark.parametrize(
    ("by_hand", "told", "mend"),
    [
        ([ONE], "has overlap_sha256 already", True),
        ([TWO], "has overlap_until already", True),
        ([ONE, TWO], "has overlap_sha256 and overlap_until already", True),
        ([AS_NEW], "lacks overlap_sha256 and overlap_until, so that it is still", True),
        ([ONE, AS_NEW], "lacks overlap_until, so that it is still", True),
        (["DROP TABLE broker_revocations"], "lacks broker_revocations:", False),
        (
            ["ALTER TABLE broker_resources DROP COLUMN created"],
            "lacks broker_resources.created:",
            False,
        ),
    ],
    ids=["first", "second", "both", "format", "half", "table", "column"],
)
def test_tables_that_somebody_changed_are_named_and_left_alone(
    at: Bench, by_hand: list[str], told: str, mend: bool
) -> None:
    """And what is said to be done about it can be done, and mends it."""
    age(at, 2)
    with at.store.database.engine.begin() as connection:
        for statement in by_hand:
            connection.execute(text(statement))
    before = state(at)
    with pytest.raises(ConfigurationError, match=told) as refused:
        upgrade(at.store.database, ROOT, now=at.clock)
    assert refused.value.code == "broker.tables"
    assert "by hand" in str(refused.value)
    assert state(at) == before
    statements = re.findall(r"(?:ALTER|UPDATE) [A-Za-z0-9_ =]+", str(refused.value))
    assert bool(statements) == mend
    if mend:
        with at.store.database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        assert upgrade(at.store.database, ROOT, now=at.clock) == tables.FORMAT
        assert opened(at).identity == at.store.identity
        assert at.release().secret == SECRET


def test_a_broker_does_not_call_a_changed_store_out_of_reach(at: Bench) -> None:
    assert at.release().secret == SECRET
    with at.store.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE broker_resources DROP COLUMN policy"))
    with pytest.raises(FetchError) as refused:
        at.release()
    assert refused.value.code == "broker.database"
    assert "cannot be reached" not in str(refused.value)


def test_an_upgrade_needs_the_root_key(at: Bench) -> None:
    age(at, 2)
    before = at.log()
    with pytest.raises(CloisterError):
        upgrade(at.store.database, MemoryRootKey(b"x" * 32), now=at.clock)
    assert at.log() == before
    assert not ADDED & columns(at.store.database)
    assert upgrade(at.store.database, ROOT, now=at.clock) == tables.FORMAT


def test_a_store_that_names_another_identity_is_not_upgraded(at: Bench) -> None:
    age(at, 2)
    true = at.store.identity.public_key.hex()
    for key, refused in (("00" * 32, True), (true, False)):
        literal = f"X'{key}'" if "sqlite" in str(at.store.database.engine.url) else f"'\\x{key}'"
        with at.store.database.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE broker_store SET identity = {literal}")
        if refused:
            with pytest.raises(AuthenticationError) as found:
                upgrade(at.store.database, ROOT, now=at.clock)
            assert found.value.code == "broker.store"
    assert upgrade(at.store.database, ROOT, now=at.clock) == tables.FORMAT


def test_an_upgrade_that_fails_changes_nothing(at: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    age(at, 2)
    before = at.log()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Change, "record", fail)
        with pytest.raises(ZeroDivisionError):
            upgrade(at.store.database, ROOT, now=at.clock)
    assert at.log() == before
    assert not ADDED & columns(at.store.database)
    assert upgrade(at.store.database, ROOT, now=at.clock) == tables.FORMAT
