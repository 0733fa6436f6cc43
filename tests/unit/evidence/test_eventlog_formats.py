"""Event logs in the old format, and of several banks."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import MalformedError
from cloister.evidence import eventlog
from cloister.evidence.eventlog import (
    Event,
    EventType,
    encode_event_log,
    is_crypto_agile,
    parse_event_log,
    parse_legacy_event_log,
    replay,
)
from cloister.evidence.tpm import Alg

SHA1 = int(Alg.SHA1)


def legacy(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    return b"".join(
        (
            pcr.to_bytes(4, "little"),
            kind.to_bytes(4, "little"),
            hashlib.sha1(data).digest() if digest is None else digest,
            len(data).to_bytes(4, "little"),
            data,
        )
    )


LOG = legacy(0, EventType.EV_S_CRTM_VERSION, b"version") + legacy(
    7, EventType.EV_SEPARATOR, b"\0" * 4
)


def test_a_log_of_sha1_digests() -> None:
    log = parse_legacy_event_log(LOG)
    assert log.legacy
    assert log.raw == LOG
    assert log.banks == {SHA1: 20}
    assert [(event.pcr, event.type, event.data) for event in log.events] == [
        (0, EventType.EV_S_CRTM_VERSION, b"version"),
        (7, EventType.EV_SEPARATOR, bytes(4)),
    ]
    digest = hashlib.sha1(b"version").digest()
    assert replay(log, bank=SHA1)[0] == hashlib.sha1(bytes(20) + digest).digest()


def test_workers_launches_never_come_in_that_format() -> None:
    """`parse_event_log` reads the crypto-agile format alone."""
    assert not is_crypto_agile(LOG)
    with pytest.raises(MalformedError):
        parse_event_log(LOG)


@pytest.mark.parametrize("data", [b"", LOG + b"\0", LOG[:-1], legacy(24, 4, b""), b"\xff" * 64])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_legacy_event_log(data)
    assert caught.value.code == "eventlog_malformed"


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_legacy_event_log(LOG)
    monkeypatch.setattr(eventlog, "MAX_EVENTS", 1)
    with pytest.raises(MalformedError, match="more than 1"):
        parse_legacy_event_log(LOG)
    monkeypatch.setattr(eventlog, "MAX_LOG_BYTES", len(LOG) - 1)
    with pytest.raises(MalformedError, match="bytes"):
        parse_legacy_event_log(LOG)


def test_a_log_of_several_banks() -> None:
    banks = (Alg.SHA1, Alg.SHA384)
    digests = {SHA1: bytes(20), int(Alg.SHA384): bytes(48)}
    event = Event(pcr=1, type=EventType.EV_SEPARATOR, digests=digests, data=bytes(4))
    data = encode_event_log([event], banks=banks)
    assert is_crypto_agile(data)
    log = parse_event_log(data)
    assert not log.legacy
    assert log.banks == {SHA1: 20, int(Alg.SHA384): 48}
    assert log.events == (event,)
