"""The session takes affirmed workers only, and the best key that their keysets list."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cloister.channel.hpke import Kem
from cloister.channel.keyset import PublicKeyEntry
from cloister.client.request import InnerRequest
from cloister.client.session import Session
from cloister.errors import ChannelError
from support.fake_worker import FakeWorker, attester_of, without_hybrid

INNER = InnerRequest(
    method=b"POST", scheme=b"http", authority=b"w", path=b"/v1/x", headers=(), body=b""
)


def kem(session: Session) -> int:
    return int.from_bytes(session.seal(INNER, date=0).pieces[0][1:3], "big")


def test_only_an_affirmed_attester_opens_a_session() -> None:
    worker = FakeWorker()
    attester = attester_of(worker)
    assert Session(attester).attester is attester
    others: list[Any] = [None, True, worker.keyset, {"keyset": worker.keyset}]
    others.append(dataclasses.replace(attester, keyset={"e2ee_public_keys": []}))
    for other in others:
        with pytest.raises(TypeError, match="require_affirming"):
            Session(other)


def test_the_hybrid_key_is_preferred_wherever_it_stands() -> None:
    worker = FakeWorker()
    assert kem(Session(attester_of(worker))) == Kem.MLKEM768_X25519
    without_hybrid(worker)
    assert kem(Session(attester_of(worker))) == Kem.X25519


def test_keys_of_later_versions_are_passed_over() -> None:
    worker = FakeWorker()
    unknown = (
        PublicKeyEntry(key_id="later", algo="ohttp", public_key="09fffe" + "00" * 40),
        PublicKeyEntry(key_id="other", algo="something", public_key="whatever"),
    )
    entries = worker.keyset.e2ee_public_keys
    worker.keyset = dataclasses.replace(worker.keyset, e2ee_public_keys=(*unknown, *entries))
    assert kem(Session(attester_of(worker))) == Kem.MLKEM768_X25519
    worker.keyset = dataclasses.replace(worker.keyset, e2ee_public_keys=unknown)
    with pytest.raises(ChannelError) as caught:
        Session(attester_of(worker))
    assert caught.value.code == "channel.suite"


def test_sealing_twice_shares_nothing() -> None:
    session = Session(attester_of(FakeWorker()))
    first, second = session.seal(INNER, date=0), session.seal(INNER, date=0)
    assert first.length == sum(map(len, first.pieces)) == second.length
    assert b"".join(first.pieces)[7:200] != b"".join(second.pieces)[7:200]


def test_large_bodies_are_sealed_in_large_pieces() -> None:
    body = b"x" * (4 * 1024 * 1024)
    sealed = Session(attester_of(FakeWorker())).seal(dataclasses.replace(INNER, body=body), date=0)
    assert len(sealed.pieces) < 100
    assert sealed.length < len(body) * 1.003
