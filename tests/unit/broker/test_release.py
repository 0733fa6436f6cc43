"""One release from end to end, and what the audit log says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cloister.broker import audit
from cloister.broker.store import Store
from cloister.errors import AuthenticationError
from support.broker import OTHER, ROOT, SECRET, WEIGHTS, Bench, bench


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
