"""The session takes affirmed workers only, and the best key that their keysets list."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest

from cloister.channel.hpke import Kem
from cloister.channel.keyset import PublicKeyEntry
from cloister.channel.ohttp import MAX_CHUNK, ChunkedSender
from cloister.client.request import InnerRequest
from cloister.client.session import MessageHash, Session, sealed_length
from cloister.client.settings import ClientSettings
from cloister.errors import ChannelError
from support.fake_worker import FakeWorker, attester_of, without_hybrid

INNER = InnerRequest(
    method=b"POST", scheme=b"http", authority=b"w", path=b"/v1/x", headers=(), body=b""
)


def kem(session: Session) -> int:
    sealed = b"".join(session.seal(INNER, date=0).pieces)
    return int.from_bytes(sealed[1:3], "big")


def test_prompts_and_credentials_are_hidden_from_repr() -> None:
    secret = b"Bearer secret-marker"
    inner = dataclasses.replace(INNER, headers=((b"authorization", secret),), body=secret)
    assert "/v1/x" in repr(inner)
    assert "secret-marker" not in repr(inner)


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
    first, second = (b"".join(session.seal(INNER, date=0).pieces) for _ in range(2))
    assert len(first) == len(second)
    assert first[7:200] != second[7:200]


@pytest.mark.parametrize("size", [0, 1000, 15_000, 16_384, 131_072, 200_000, 4 * 1024 * 1024])
@pytest.mark.parametrize("padding", [1, 1024, 16_384])
def test_the_length_is_known_before_sealing(size: int, padding: int) -> None:
    settings = ClientSettings(request_padding=padding)
    session = Session(attester_of(FakeWorker()), settings=settings)
    sealed = session.seal(dataclasses.replace(INNER, body=b"x" * size), date=0)
    pieces = list(sealed.pieces)
    assert sum(map(len, pieces)) == sealed.length
    assert len(pieces) <= 3 + size // 65_536


@pytest.mark.parametrize("size", [MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK, 1, 0])
def test_the_length_at_the_edges_of_chunks(size: int) -> None:
    worker = FakeWorker()
    sender = ChunkedSender(worker.keys[1].config)
    header = sender.start()
    sealed = b"".join(sender.pieces((b"x" * size,), final=True))
    assert header
    assert len(sealed) == sealed_length(size)


@pytest.mark.parametrize("size", [10, 2 * 1024 * 1024])
def test_hashes_of_messages(size: int) -> None:
    parts = (b"a", b"b" * size, b"c")
    message_hash = MessageHash(parts)
    for _ in range(2):
        assert message_hash.digest() == hashlib.sha256(b"".join(parts)).digest()
