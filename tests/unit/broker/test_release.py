"""One release from end to end, and what the audit log says of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text

from cloister.broker import audit, session, tables
from cloister.broker.denial import Denied
from cloister.broker.desk import Desk
from cloister.broker.store import Store
from cloister.errors import AuthenticationError
from support.broker import OTHER, ROOT, SECRET, SOURCE, WEIGHTS, Bench, attested, bench


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def test_a_worker_gets_the_key(at: Bench) -> None:
    released = at.release()
    assert (released.secret, released.version) == (SECRET, 1)
    events = [entry["event"] for entry in at.log()]
    assert events == ["store.created", "secret.put", "policy.set", "attested", "released"]
    detail = at.last()["detail"]
    assert detail["resource"] == str(WEIGHTS)
    assert detail["keyset"] == at.attester.keyset.digest
    assert (detail["version"], detail["stock"]) == (1, False)


def test_each_release_needs_evidence_of_its_own(at: Bench) -> None:
    at.release()
    at.release()
    assert [entry["event"] for entry in at.log()].count("attested") == 2


def test_the_store_opens_again_with_its_root_key(at: Bench) -> None:
    again = Store.open(at.store.database, ROOT, now=at.clock)
    assert again.identity == at.store.identity
    assert [resource.uri for resource in again.resources()] == [WEIGHTS]
    at.release()


def test_nothing_secret_lies_in_the_database_or_its_log(at: Bench, tmp_path: Path) -> None:
    at.store.rotate(WEIGHTS, b"n" * 32, overlap_s=60)
    at.release()
    at.store.database.close()
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for secret in (SECRET, b"n" * 32):
        assert secret not in everything
        assert secret.hex().encode() not in everything


def test_the_log_is_a_chain_that_its_broker_signs(at: Bench) -> None:
    at.release()
    lines = list(audit.export_lines(at.store.audit_entries(), at.store.identity_key))
    head = audit.verify_export(lines, at.store.identity)
    assert head.sequence == 5


def test_a_log_whose_end_was_cut_off_is_not_signed(at: Bench) -> None:
    """Also where nobody kept an earlier export: the store knows what it wrote last."""
    at.release()
    with at.store.database.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER broker_audit_no_delete"))
        connection.execute(text("DELETE FROM broker_audit WHERE sequence > 3"))
    with pytest.raises(AuthenticationError) as refused:
        list(audit.export_lines(at.store.audit_entries(), at.store.identity_key))
    assert refused.value.code == "audit.chain"


def test_a_clock_that_goes_back_gives_no_token_more_time(at: Bench) -> None:
    """Nor does it put an entry before the one before it."""
    made, late, begun = attested(at), attested(at), at.clock.now
    at.clock.now = begun + session.TOKEN_S - 1
    assert at.desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
    at.clock.now = begun + session.TOKEN_S
    at.store.put(OTHER, b"o")
    at.clock.now = begun
    with pytest.raises(Denied) as denied:
        at.desk.release(late.cookie, late.token, WEIGHTS.path, source=SOURCE)
    assert denied.value.reason == "expired"
    times = [entry["at"] for entry in at.log()]
    assert times == sorted(times)


def first_byte_zero(size: int) -> bytes:
    """Random, but such that the session is one at which old ones are forgotten."""
    return b"\0" + os.urandom(size - 1)


def rows(at: Bench) -> tuple[int, int]:
    with at.store.database.engine.connect() as connection:
        sessions = connection.execute(select(tables.sessions)).all()
        return len(sessions), len(connection.execute(select(tables.releases)).all())


def test_old_sessions_are_forgotten_once_nobody_could_answer_again(at: Bench) -> None:
    made, begun = attested(at), at.clock.now
    assert at.desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
    forgetful = dataclasses.replace(
        at, desk=Desk(at.store, roots=at.attester.roots, random=first_byte_zero)
    )
    at.clock.now = begun + session.CHALLENGE_S - 1
    assert forgetful.release().secret == SECRET
    assert rows(at) == (2, 2)
    with pytest.raises(Denied) as denied:
        at.desk.attest(made.cookie, made.body, source=SOURCE)
    assert denied.value.reason == "replayed"
    at.clock.now = begun + session.TOKEN_S + session.KEEP_S + session.CHALLENGE_S
    assert forgetful.release().secret == SECRET
    assert rows(at) == (1, 1)


def test_rotation_keeps_the_old_version_for_a_while(at: Bench) -> None:
    at.store.rotate(WEIGHTS, b"n" * 32, overlap_s=600)
    assert at.release().secret == b"n" * 32
    assert at.release(version=1).secret == SECRET
    assert at.release(version=2).version == 2


def test_a_secret_without_a_policy_is_released_to_nobody(at: Bench) -> None:
    from cloister.errors import KeyReleaseDenied

    at.store.put(OTHER, b"o")
    with pytest.raises(KeyReleaseDenied) as denied:
        at.release(OTHER)
    assert denied.value.code == "key_release.no_policy"
    at.store.set_policy(OTHER, at.policy)
    assert at.release(OTHER).secret == b"o"
