"""CCEL areas: what decodes, what does not, and what registers they lead to."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import MalformedError
from cloister.evidence.ccel import parse_ccel, replay_rtmrs
from cloister.evidence.eventlog import MAX_EVENTS, MAX_LOG_BYTES, Event, EventType
from cloister.evidence.tpm import Alg
from support.tdx_logs import boot, ccel, ccel_event, ccel_header, measured


def refused(data: bytes) -> str:
    parse_ccel(ccel(boot()))
    with pytest.raises(MalformedError) as caught:
        parse_ccel(data)
    assert caught.value.code == "eventlog_malformed"
    return str(caught.value)


@pytest.mark.parametrize("padding", [0, 1, 3, 4, 5, 4096])
def test_there_and_back(padding: int) -> None:
    if 0 < padding < 4:
        refused(ccel(boot(), padding=padding))
        return
    log = parse_ccel(ccel(boot(), padding=padding))
    assert list(log.events) == boot()


def test_data_that_looks_like_padding() -> None:
    event = measured(0, EventType.EV_EFI_ACTION, b"\xff" * 9)
    assert parse_ccel(ccel([event])).events == (event,)
    assert parse_ccel(ccel([event], padding=0)).events == (event,)


@pytest.mark.parametrize("register", [0, 1])
def test_the_headers_register(register: int) -> None:
    assert parse_ccel(ccel_header(register=register)).events == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        ccel_header(register=2),
        ccel_header(kind=EventType.EV_SEPARATOR),
        ccel_header(digest=b"\x01" + bytes(19)),
        ccel_header(signature=b"Spec ID Event02\0"),
        ccel_header(banks=[]),
        ccel_header(banks=[(Alg.SHA256, 32)]),
        ccel_header(banks=[(Alg.SHA384, 32)]),
        ccel_header(banks=[(Alg.SHA384, 48), (Alg.SHA256, 32)]),
        ccel_header(tail=b""),
        ccel_header(tail=b"\x00\x00"),
        ccel_header(tail=b"\x01"),
        ccel_header()[:-1],
    ],
    ids=range(14),
)
def test_headers_refused(data: bytes) -> None:
    refused(data)


GOOD = boot()[0]


@pytest.mark.parametrize(
    "event",
    [
        ccel_event(Event(pcr=-1, type=GOOD.type, digests=GOOD.digests, data=GOOD.data)),
        ccel_event(Event(pcr=4, type=GOOD.type, digests=GOOD.digests, data=GOOD.data)),
        ccel_event(GOOD, algorithm=Alg.SHA256),
        ccel_event(GOOD, count=0),
        ccel_event(GOOD, count=2),
        ccel_event(GOOD)[:-1],
        b"\xff\xff\xff",
        b"\xff\xff\xff\xff\xfe",
        b"\xff\xff\xff\xff\xff" + ccel_event(GOOD),
        ccel_event(GOOD) + b"\0",
        ccel_event(GOOD)[:-8] + b"\xff\xff\xff\x7f" + bytes(4),
    ],
    ids=range(11),
)
def test_events_refused(event: bytes) -> None:
    parse_ccel(ccel_header() + ccel_event(GOOD))
    refused(ccel_header() + event)


def test_bounds() -> None:
    refused(ccel(boot(), padding=MAX_LOG_BYTES))
    event = ccel_event(measured(0, EventType.EV_EFI_ACTION, b""))
    assert len(parse_ccel(ccel_header() + event * MAX_EVENTS).events) == MAX_EVENTS
    refused(ccel_header() + event * (MAX_EVENTS + 1))


def test_replay() -> None:
    def extended(*digests: bytes) -> bytes:
        register = bytes(48)
        for digest in digests:
            register = hashlib.sha384(register + digest).digest()
        return register

    separator = hashlib.sha384(bytes(4)).digest()
    action = hashlib.sha384(b"Exit Boot Services Invocation").digest()
    assert replay_rtmrs(boot()) == (
        extended(separator, action),
        extended(b"\x11" * 48, separator),
        bytes(48),
        bytes(48),
    )
