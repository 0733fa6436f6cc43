"""SQLite and a real PostgreSQL server, several brokers at once: one order, nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from cloister.broker import audit, session, tables
from cloister.broker.database import Change, Database
from cloister.broker.denial import Denied
from cloister.broker.desk import Desk
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.session import token_digest
from cloister.broker.store import Revoked, Store
from cloister.channel.hpke import Kem, PrivateKey
from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, FetchError
from cloister.strictjson import canonical
from support.broker import (
    OTHER,
    ROOT,
    SECRET,
    SOURCE,
    WEIGHTS,
    Bench,
    attested,
    bench,
    policy_for,
)
from support.postgres import HAVE_POSTGRES, MISSING, postgres_database

THREADS = 4


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.skipif(not HAVE_POSTGRES, reason=MISSING)),
    ]
)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'broker.db'}"
        return
    with postgres_database() as found:
        yield found


@pytest.fixture
def at(address: str) -> Iterator[Bench]:
    with bench(address) as made:
        yield made
        audit.follow_all(made.store.audit_entries())


@pytest.fixture
def others(at: Bench, address: str) -> Iterator[list[Desk]]:
    """Further brokers of the same store, each with connections of its own."""
    databases = [Database.open(address) for _ in range(2)]
    yield [
        Desk(Store.open(database, ROOT, now=at.clock), roots=at.attester.roots)
        for database in databases
    ]
    for database in databases:
        database.close()


def together(*steps: Callable[[], Any]) -> list[Any]:
    """Run all at once; results, or the deliberate errors."""
    gate = threading.Barrier(len(steps))

    def run(step: Callable[[], Any]) -> Any:
        gate.wait(30)
        try:
            return step()
        except CloisterError as error:
            return error

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(run, steps))


def test_a_store_keeps_and_releases(at: Bench) -> None:
    assert at.release().secret == SECRET
    assert at.store.rotate(WEIGHTS, b"n" * 32, overlap_s=60) == 2
    assert at.release().secret == b"n" * 32
    assert at.release(version=1).secret == SECRET
    with pytest.raises(ConfigurationError):
        at.store.put(WEIGHTS, b"again")


def test_a_session_goes_on_at_another_broker(at: Bench, others: list[Desk]) -> None:
    made = attested(at)
    sealed, _ = others[0].release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
    assert sealed
    for desk in (at.desk, *others):
        with pytest.raises(Denied) as denied:
            desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
        assert denied.value.reason == "spent"
        with pytest.raises(Denied) as denied:
            desk.attest(made.cookie, made.body, source=SOURCE)
        assert denied.value.reason == "replayed"


def test_one_token_shown_to_all_brokers_at_once_is_spent_once(
    at: Bench, others: list[Desk]
) -> None:
    made = attested(at)
    desks = [at.desk, *others] * 2
    outcomes = together(
        *(
            lambda desk=desk: desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
            for desk in desks
        )
    )
    assert sum(isinstance(one, tuple) for one in outcomes) == 1
    assert {one.reason for one in outcomes if isinstance(one, Denied)} == {"spent"}


def test_one_answer_given_to_all_brokers_at_once_counts_once(at: Bench, others: list[Desk]) -> None:
    fresh = unanswered(at)
    desks = [at.desk, *others]
    outcomes = together(
        *(lambda desk=desk: desk.attest(fresh[0], fresh[1], source=SOURCE) for desk in desks)
    )
    assert sum(isinstance(one, bytes) for one in outcomes) == 1
    assert {one.reason for one in outcomes if isinstance(one, Denied)} == {"replayed"}


def unanswered(at: Bench) -> tuple[str, bytes]:
    """A cookie and an attestation that no broker has seen."""
    from cloister.channel import rcar
    from cloister.worker.key_release import Answer, release_key
    from support.broker import Wire

    seen: dict[str, Any] = {}
    wire = Wire(at.desk)

    def send(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
        if path == rcar.ATTEST_PATH:
            seen["cookie"] = headers["cookie"].removeprefix(f"{rcar.COOKIE}=")
            seen["body"] = body
            raise FetchError("held back")
        return wire(method, path, body=body, headers=headers)

    with pytest.raises(FetchError):
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    return seen["cookie"], seen["body"]


def test_releases_rotations_and_revocations_at_once(at: Bench, others: list[Desk]) -> None:
    """Whatever comes first, each worker gets a version that was in force, and the log is whole."""
    versions = {1: SECRET, 2: b"2" * 32, 3: b"3" * 32}

    def work(desk: Desk) -> list[Any]:
        local = Bench(store=desk.store, desk=desk, clock=at.clock, attester=at.attester)
        released = []
        for _ in range(4):
            try:
                released.append(local.release())
            except CloisterError as error:
                # A revocation in between ends the session; the worker begins anew.
                assert error.code == "key_release.rules"
        return released

    def rotate() -> list[Any]:
        for number in (2, 3):
            others[0].store.rotate(WEIGHTS, versions[number], overlap_s=60)
        return []

    def revoke() -> list[Any]:
        others[1].store.revoke(Revoked.WORKER, "sha256:" + "9" * 64, "somebody else")
        return []

    outcomes = together(
        *(lambda desk=desk: work(desk) for desk in (at.desk, *others)),
        rotate,
        revoke,
    )
    released = [one for outcome in outcomes for one in outcome]
    assert released
    assert all(one.secret == versions[one.version] for one in released)
    log = [json.loads(entry) for entry in at.store.audit_entries()]
    assert [entry["sequence"] for entry in log] == list(range(1, len(log) + 1))
    spent = [entry["detail"]["session"] for entry in log if entry["event"] == "released"]
    assert len(spent) == len(set(spent)) == len(released)
    assert at.release().version == 3


def test_of_two_who_put_one_name_one_wins(at: Bench, others: list[Desk]) -> None:
    outcomes = together(
        lambda: others[0].store.put(OTHER, b"one"), lambda: others[1].store.put(OTHER, b"two")
    )
    assert sorted(map(type, outcomes), key=str) == sorted([int, ConfigurationError], key=str)
    at.store.set_policy(OTHER, policy_for(at.attester))
    assert at.release(OTHER).secret in {b"one", b"two"}


def test_of_two_who_make_a_store_one_wins(address: str) -> None:
    def make() -> Store:
        database = Database.open(address)
        try:
            return Store.create(database, ROOT, now=lambda: 1.0)
        finally:
            database.close()

    outcomes = together(make, make)
    assert sum(isinstance(one, Store) for one in outcomes) == 1
    database = Database.open(address)
    assert Store.open(database, ROOT, now=lambda: 1.0).resources() == ()
    database.close()


def test_nothing_opens_without_a_store_or_with_another_root_key(address: str) -> None:
    database = Database.open(address)
    for root in (ROOT, MemoryRootKey(b"x" * 32)):
        with pytest.raises(ConfigurationError) as refused:
            Store.open(database, root, now=lambda: 1.0)
        assert refused.value.code == "broker.no_store"
    Store.create(database, ROOT, now=lambda: 1.0)
    Store.open(database, ROOT, now=lambda: 1.0)
    with pytest.raises(ConfigurationError) as refused:
        Store.open(database, MemoryRootKey(b"x" * 32), now=lambda: 1.0)
    assert refused.value.code == "root_key.refused"
    database.close()


def test_another_root_key_can_take_over(at: Bench) -> None:
    new = MemoryRootKey(b"x" * 32, name="development (new)")
    at.store.rewrap(ROOT, new)
    with pytest.raises(ConfigurationError):
        Store.open(at.store.database, ROOT, now=at.clock)
    again = Store.open(at.store.database, new, now=at.clock)
    assert again.identity == at.store.identity
    assert at.last()["detail"] == {"root_key": "development (new)"}
    assert at.release().secret == SECRET


COPIED = (
    "UPDATE broker_versions SET sealed = (SELECT sealed FROM broker_versions WHERE {}) WHERE {}"
)
MOVED = {
    "another secret's": COPIED.format("uri LIKE '%llama' AND version = 1", "uri LIKE '%other'"),
    "another version's": COPIED.format("uri LIKE '%llama' AND version = 1", "version = 2"),
}


@pytest.mark.parametrize("case", MOVED)
def test_a_row_that_holds_another_row_s_secret_does_not_open(at: Bench, case: str) -> None:
    at.store.put(OTHER, b"o" * 32)
    at.store.set_policy(OTHER, at.policy)
    at.store.rotate(WEIGHTS, b"n" * 32, overlap_s=60)
    assert at.release(OTHER).secret == b"o" * 32
    with at.store.database.engine.begin() as connection:
        connection.execute(text(MOVED[case]))
    moved = OTHER if "secret" in case else WEIGHTS
    with pytest.raises(AuthenticationError) as refused:
        at.release(moved)
    assert refused.value.code == "broker.store"
    assert (at.last()["event"], at.last()["detail"]["code"]) == ("failed", "broker.store")


def hexed(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in row.items()
        if name != "tag"
    }


def test_a_session_that_somebody_else_wrote_releases_nothing(at: Bench) -> None:
    """Neither a whole row, nor one that names another wrapping key, secret or end."""
    made = attested(at)
    found = session.parse_cookie(made.cookie, at.store.master)
    table, mine = tables.sessions, PrivateKey(Kem.MLKEM768_X25519, b"m" * 32)
    with at.store.database.engine.connect() as connection:
        row = dict(connection.execute(select(table)).one()._mapping)
    changes: list[dict[str, Any]] = [
        {"wrapping_key": mine.public_bytes},
        {"uri": str(OTHER)},
        {"version": 1},
        {"statement": bytes(32)},
        {"expires": row["expires"] + 1},
        {"rules": row["rules"] + 1},
        {"stock": True},
        {"token_sha256": token_digest("mine")},
        {"tag": bytes(32)},
        # The MAC of the same words as if they were a cookie's.
        {"tag": at.store.master.mac(canonical(hexed(row)))},
    ]
    for change in changes:
        with at.store.database.engine.begin() as connection:
            connection.execute(delete(table).where(table.c.nonce == found.nonce))
            connection.execute(insert(table).values(row | change))
        token = "mine" if "token_sha256" in change else made.token
        with pytest.raises(AuthenticationError) as refused:
            at.desk.release(made.cookie, token, WEIGHTS.path, source=SOURCE)
        assert refused.value.code == "broker.store", change
        assert at.last()["event"] == "failed"
    with at.store.database.engine.begin() as connection:
        connection.execute(delete(table).where(table.c.nonce == found.nonce))
        connection.execute(insert(table).values(row))
    assert at.desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)


@pytest.mark.parametrize("whose", ["nobody's", "another secret's"])
def test_a_policy_that_somebody_else_wrote_releases_nothing(at: Bench, whose: str) -> None:
    at.store.put(OTHER, b"o" * 32)
    at.store.set_policy(OTHER, at.policy)
    assert at.release(OTHER).secret == b"o" * 32
    assert at.release().secret == SECRET, "both policies were opened, and are kept"
    table = tables.resources
    with at.store.database.engine.begin() as connection:
        kept = connection.execute(select(table.c.policy).where(table.c.uri == str(WEIGHTS)))
        policy = at.policy.encode() if whose == "nobody's" else kept.scalar_one()
        connection.execute(update(table).where(table.c.uri == str(OTHER)).values(policy=policy))
    with pytest.raises(AuthenticationError) as refused:
        at.release(OTHER)
    assert refused.value.code == "broker.store"
    assert at.last()["event"] == "failed"


@pytest.mark.parametrize(
    "statement", ["DELETE FROM broker_audit", "UPDATE broker_audit SET sequence = 0"]
)
def test_the_database_keeps_the_log_from_mistakes(at: Bench, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match="only grows"),
        at.store.database.engine.begin() as connection,
    ):
        connection.execute(text(statement))


def test_reading_sees_one_state(at: Bench, address: str) -> None:
    database = Database.open(address)
    elsewhere = Store.open(database, ROOT, now=at.clock)
    with at.store.database.reading() as connection:
        before = at.store.rules(connection)
        elsewhere.revoke(Revoked.WORKER, "sha256:" + "9" * 64, "somebody else")
        assert at.store.revocations(connection) == {}
        assert at.store.rules(connection) == before
    with at.store.database.reading() as connection:
        assert len(at.store.revocations(connection)) == 1
    database.close()


@pytest.mark.skipif(not HAVE_POSTGRES, reason=MISSING)
def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    with postgres_database() as address, bench(address) as at:
        assert at.release().secret == SECRET
        other = Database.open(address)
        for begin in (at.store.database.reading, lambda: at.store.database.change(at=0)):
            with pytest.raises(FetchError) as refused, begin() as begun:
                connection = begun.connection if isinstance(begun, Change) else begun
                found = connection.first(text("SELECT pg_backend_pid() AS pid"))
                assert found is not None
                with other.reading() as killing:
                    assert killing.first(text(f"SELECT pg_terminate_backend({found.pid})"))
                at.store.rules(connection)
            assert refused.value.code == "broker.database"
            assert at.release().secret == SECRET
        other.close()


def test_a_connection_in_use_is_closed_after_the_database(tmp_path: Path) -> None:
    with bench(f"sqlite:///{tmp_path / 'broker.db'}") as at:
        database = at.store.database
        with database.reading() as connection:
            at.store.rules(connection)
        (kept,) = database._kept
        with database.reading() as connection:
            at.store.rules(connection)
            assert database._kept == []
            database.close()
        assert database._kept == []
        assert not kept.is_valid


def test_a_transaction_that_does_not_begin_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was left within one would fail whoever comes next, and hold the lock."""
    with bench(f"sqlite:///{tmp_path / 'broker.db'}") as at:
        database = at.store.database
        with database.reading() as connection:
            at.store.rules(connection)
        (kept,) = database._kept
        assert kept.dbapi_connection is not None
        kept.dbapi_connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(FetchError), database.reading():
            pass
        assert at.release().secret == SECRET


def test_a_change_without_an_entry_is_undone(at: Bench) -> None:
    with pytest.raises(RuntimeError), at.store.changing() as change:
        change.connection.run(text("DELETE FROM broker_versions"))
    assert at.release().secret == SECRET


@pytest.mark.parametrize(
    "wrong", ["", "mysql://x/y", "sqlite:////nowhere/at/all/x.db", "postgresql", "://"]
)
def test_other_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Database.open(wrong)
    assert refused.value.code == "broker.database"


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    Database.open(f"sqlite:///{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigurationError):
        Database.open(f"sqlite:///{path}")


def test_a_name_that_leads_to_a_file_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    Database.open(f"sqlite:///{path}").close()
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(ConfigurationError) as refused:
        Database.open(f"sqlite:///{tmp_path / 'link.db'}")
    assert refused.value.code == "broker.database"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "broker.db", 0o600)
    with pytest.raises(ConfigurationError) as refused:
        Database.open(f"sqlite:///{tmp_path / 'broker.db'}")
    assert refused.value.code == "broker.database"


def test_every_connection_to_a_file_flushes_what_it_commits(tmp_path: Path) -> None:
    """Without that, a token that was spent would come back after a power cut."""
    database = Database.open(f"sqlite:///{tmp_path / 'broker.db'}")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(database.reading())
            found = [
                (connection.first(text(f"PRAGMA {name}")) or (None,))[0]
                for name in ("journal_mode", "synchronous")
            ]
            assert found == ["wal", 2]
    database.close()


def test_connections_to_a_file_are_used_again_and_closed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    database = Database.open(f"sqlite:///{path}")
    for at_once in (1, 3, 2):
        with contextlib.ExitStack() as stack:
            for _ in range(at_once):
                stack.enter_context(database.reading()).first(text("PRAGMA user_version"))
            found = opened(path)
    assert found == 3
    database.close()
    assert opened(path) == 0


def opened(path: Path) -> int:
    """How many descriptors of this process lead to `path`."""
    open_now = Path("/proc/self/fd").iterdir()
    return sum(one.exists() and one.samefile(path) for one in open_now)


def test_tables_without_a_store_take_no_change(address: str) -> None:
    database = Database.open(address)
    tables.metadata.create_all(database.engine)
    with pytest.raises(ConfigurationError) as refused, database.change(at=1.0) as change:
        change.record("x", {})
    assert refused.value.code == "broker.no_store"
    database.close()


def test_a_store_of_another_format_is_not_opened(at: Bench) -> None:
    table = tables.store
    Store.open(at.store.database, ROOT, now=at.clock)
    with at.store.database.engine.begin() as connection:
        connection.execute(update(table).values(format=tables.FORMAT - 1))
    with pytest.raises(ConfigurationError) as refused:
        Store.open(at.store.database, ROOT, now=at.clock)
    assert refused.value.code == "broker.format"


def test_an_error_of_the_database_quotes_nothing(at: Bench) -> None:
    word = "what-stands-in-a-row"
    row = {"uri": word, "current": 1, "policy": None, "created": 1}
    with pytest.raises(FetchError) as refused, at.store.changing() as change:
        change.connection.run(insert(tables.resources).values(row))
        change.connection.run(insert(tables.resources).values(row))
    assert refused.value.code == "broker.database"
    assert word not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert at.release().secret == SECRET, "and nothing of the change stayed"


def test_a_database_that_is_away_is_said_so() -> None:
    database = Database.open("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    with pytest.raises(FetchError) as away:
        Store.open(database, ROOT, now=lambda: 1.0)
    assert away.value.code == "broker.database"
    assert "127.0.0.1" not in str(away.value)
    database.close()


def test_looking_for_a_table_waits_for_nobodys_change(at: Bench, address: str) -> None:
    other = Database.open(address)
    with contextlib.closing(other), at.store.changing() as change:
        assert other.has(tables.store)
        change.record("test", {})


def test_a_connection_that_cannot_be_undone_is_not_used_again(
    at: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be within a transaction still, and hold the lock of everybody's."""
    database = at.store.database

    def fail(_: object) -> None:
        raise database._errors.OperationalError("no")

    with monkeypatch.context() as broken:
        broken.setattr(database.engine.dialect, "do_rollback", fail)
        with pytest.raises(FetchError), at.store.changing() as change:
            change.record("lost", {})
            raise ZeroDivisionError
    with at.store.changing() as change:
        change.record("kept", {})
    assert [entry["event"] for entry in at.log()][-1:] == ["kept"]
    assert "lost" not in {entry["event"] for entry in at.log()}
