"""Crashes at every commit of put, rotate and release: nothing lost, nothing released twice.

A child process dies (`os._exit`) right before or right after a commit, or right before or after
any single statement, as a power cut would have it; then the store is opened again. The release
that never left the broker may or may not count as spent: its key was not handed out either way,
and its token never opens anything a second time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.broker import audit
from cloister.broker.database import Database
from cloister.broker.denial import Denied
from cloister.broker.desk import Desk
from cloister.broker.statements import Connection, Prepared
from cloister.broker.store import Store
from support.broker import ROOT, SECRET, SOURCE, WEIGHTS, Attested, Clock, attested, bench

NEW = b"n" * 32
DIED = 9


def die() -> None:
    os._exit(DIED)


def at_commit(database: Database, *, after: bool) -> None:
    """Die at the first commit that wrote anything, before it or after it."""
    wrote: list[bool] = []
    dialect = database.engine.dialect
    commit = dialect.do_commit

    def counted(connection: Any) -> None:
        if wrote and not after:
            die()
        commit(connection)
        if wrote and after:
            die()

    def noticed(text: str) -> None:
        if text.startswith(("INSERT", "UPDATE")):
            wrote.append(True)

    after_each(noticed)

    dialect.do_commit = counted  # type: ignore[method-assign,assignment]  # crashes


def at_statement(number: int) -> None:
    """Die after the statement with this number."""
    seen = {"statements": 0}

    def counted(_: str) -> None:
        seen["statements"] += 1
        if seen["statements"] == number:
            die()

    after_each(counted)


def after_each(hook: Callable[[str], None]) -> None:
    """Call `hook` with every statement that ran. For a process that ends soon."""
    run = Connection._run

    def hooked(self: Connection, prepared: Prepared, values: dict[str, Any]) -> Any:
        cursor = run(self, prepared, values)
        hook(prepared.text(self._dialect)[0])
        return cursor

    Connection._run = hooked  # type: ignore[method-assign]  # crashes


def in_child(path: Path, clock: Clock, crash: Callable[[Database], None], run: Any) -> int:
    """Run in a forked child that opens the store anew; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            database = Database.open(f"sqlite:///{path / 'broker.db'}")
            store = Store.open(database, ROOT, now=clock)
            crash(database)
            run(store)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def opened(path: Path, clock: Clock) -> tuple[Database, Store]:
    database = Database.open(f"sqlite:///{path / 'broker.db'}")
    return database, Store.open(database, ROOT, now=clock)


CRASHES: dict[str, Callable[[Database], None]] = {
    "before the commit": lambda database: at_commit(database, after=False),
    "after the commit": lambda database: at_commit(database, after=True),
    **{
        f"after statement {number}": lambda _, number=number: at_statement(number)  # type: ignore[misc]  # a loop's value
        for number in range(1, 9)
    },
}


@pytest.mark.parametrize("crash", CRASHES)
def test_put_happens_whole_or_not_at_all(tmp_path: Path, crash: str) -> None:
    new = WEIGHTS.__class__(repository="acme", type="weights", tag="new")
    with bench(tmp_path) as at:
        at.store.database.close()
        died = in_child(tmp_path, at.clock, CRASHES[crash], lambda store: store.put(new, NEW))
        database, store = opened(tmp_path, at.clock)
        there = new in {resource.uri for resource in store.resources()}
        events = [entry for entry in store.audit_entries() if str(new).encode() in entry]
        logged = bool(events)
        assert there == logged
        if not there:
            assert store.put(new, NEW) == 1
        audit.follow_all(store.audit_entries())
        assert died in {0, DIED}
        if crash == "before the commit":
            assert (died, there) == (DIED, False)
        if crash == "after the commit":
            assert (died, there) == (DIED, True)
        assert at.release().secret == SECRET
        database.close()


@pytest.mark.parametrize("crash", CRASHES)
def test_rotation_happens_whole_or_not_at_all(tmp_path: Path, crash: str) -> None:
    with bench(tmp_path) as at:
        at.store.database.close()
        died = in_child(
            tmp_path,
            at.clock,
            CRASHES[crash],
            lambda store: store.rotate(WEIGHTS, NEW, overlap_s=60),
        )
        database, store = opened(tmp_path, at.clock)
        (resource,) = store.resources()
        rotated = resource.current == 2
        assert rotated == (b'"secret.rotated"' in b"".join(store.audit_entries()))
        released = at.release()
        assert released.secret == (NEW if rotated else SECRET)
        assert at.release(version=1).secret == SECRET, "the old version is lost at no point"
        audit.follow_all(store.audit_entries())
        assert died in {0, DIED}
        if crash == "before the commit":
            assert (died, rotated) == (DIED, False)
        if crash == "after the commit":
            assert (died, rotated) == (DIED, True)
        database.close()


@pytest.mark.parametrize("crash", CRASHES)
def test_a_release_is_given_once_or_never(tmp_path: Path, crash: str) -> None:
    with bench(tmp_path) as at:
        made = attested(at)
        at.store.database.close()
        answered = tmp_path / "answered"

        def release(store: Store) -> None:
            Desk(store, roots=at.attester.roots).release(
                made.cookie, made.token, WEIGHTS.path, source=SOURCE
            )
            answered.write_bytes(b"")  # it left the broker

        died = in_child(tmp_path, at.clock, CRASHES[crash], release)
        database, store = opened(tmp_path, at.clock)
        spent = b'"released"' in b"".join(store.audit_entries())
        if answered.exists():
            assert spent, "what left the broker is written down"
        again = spends(Desk(store, roots=at.attester.roots), made)
        assert again == (not spent), "a token opens nothing twice, and is not lost either"
        assert not spends(Desk(store, roots=at.attester.roots), made)
        audit.follow_all(store.audit_entries())
        assert died in {0, DIED}
        if crash == "before the commit":
            assert (died, spent) == (DIED, False)
        if crash == "after the commit":
            assert (died, spent) == (DIED, True)
        assert at.release().secret == SECRET
        database.close()


def spends(desk: Desk, made: Attested) -> bool:
    try:
        desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
    except Denied as denied:
        assert denied.reason == "spent"
        return False
    return True


@pytest.mark.parametrize("crash", ["before the commit", "after the commit"])
def test_an_answered_challenge_counts_once(tmp_path: Path, crash: str) -> None:
    with bench(tmp_path) as at:
        made = attested(at)
        fresh = attested_body(at)
        at.store.database.close()
        died = in_child(
            tmp_path,
            at.clock,
            CRASHES[crash],
            lambda store: Desk(store, roots=at.attester.roots).attest(
                fresh[0], fresh[1], source=SOURCE
            ),
        )
        assert died == DIED
        database, store = opened(tmp_path, at.clock)
        desk = Desk(store, roots=at.attester.roots)
        if crash == "before the commit":
            assert desk.attest(fresh[0], fresh[1], source=SOURCE)
        with pytest.raises(Denied) as denied:
            desk.attest(fresh[0], fresh[1], source=SOURCE)
        assert denied.value.reason == "replayed"
        assert spends(desk, made)
        audit.follow_all(store.audit_entries())
        database.close()


def attested_body(at: Any) -> tuple[str, bytes]:
    """A cookie and an attestation that was never sent."""
    seen: dict[str, Any] = {}

    def attest(message: Any) -> None:
        raise _StopError

    from cloister.channel import rcar
    from cloister.worker.key_release import Answer, release_key
    from support.broker import Wire

    wire = Wire(at.desk)

    def send(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
        if path == rcar.ATTEST_PATH:
            seen["cookie"] = headers["cookie"].removeprefix(f"{rcar.COOKIE}=")
            seen["body"] = body
            raise _StopError
        return wire(method, path, body=body, headers=headers)

    with pytest.raises(_StopError):
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    return seen["cookie"], seen["body"]


class _StopError(Exception):
    pass


def test_nobody_changes_or_removes_an_entry_by_mistake(tmp_path: Path) -> None:
    with bench(tmp_path):
        connection = sqlite3.connect(tmp_path / "broker.db")
        for statement in ("DELETE FROM broker_audit", "UPDATE broker_audit SET entry = x'00'"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(statement)
        connection.close()
