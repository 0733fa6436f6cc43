"""dstack's event logs: members, digests of both versions, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cloister.errors import MalformedError
from cloister.evidence.dstack import (
    DigestVersion,
    compose_hash,
    config_id,
    parse_dstack_log,
)
from support.tdx_logs import COMPOSE, RUNTIME, dstack_events, dstack_log, runtime_event


def refused(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        parse_dstack_log(data)
    assert caught.value.code == "eventlog_malformed"
    return str(caught.value)


def test_members() -> None:
    log = parse_dstack_log(dstack_log(dstack_events()))
    names = [event.name for event in log.runtime]
    assert names[:3] == ["system-preparing", "app-id", "compose-hash"]
    first = log.events[0]
    assert (first.rtmr, first.type, first.name, first.payload) == (0, 4, "", bytes(4))
    assert not first.is_runtime
    assert all(event.digest == event.computed for event in log.runtime)


def test_the_digest_of_dstack() -> None:
    """The separator of a real guest: its digest is public in dstack's own test data."""
    event = runtime_event("boot-mr-done")
    assert event["digest"].startswith("98bd7e6bd3952720b65027fd494834045d06b4a714bf737a")


@pytest.mark.parametrize("version", DigestVersion)
def test_digests_left_out_are_computed(version: int) -> None:
    whole = parse_dstack_log(dstack_log(dstack_events(version=version)))
    without = parse_dstack_log(dstack_log(dstack_events(version=version, digest=False)))
    assert [event.digest for event in without.events] == [event.digest for event in whole.events]


def test_versions_differ() -> None:
    old = parse_dstack_log(dstack_log([runtime_event("a", b"b")])).events[0]
    new = parse_dstack_log(dstack_log([runtime_event("a", b"b", version=2)])).events[0]
    assert old.digest != new.digest
    assert new.digest == hashlib.sha384(b'{"name":"a","payload":"62","type":134217729}').digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"imr": 4},
        {"imr": -1},
        {"imr": True},
        {"imr": "3"},
        {"event_type": 1 << 32},
        {"digest": "00" * 32},
        {"digest": "AA" * 48},
        {"digest": None},
        {"event": None},
        {"event": "x" * 257},
        {"event_payload": "0"},
        {"event_payload": "AA"},
        {"event_payload": None},
        {"version": 3},
        {"version": 0},
        {"version": "1"},
        {"preimage": ""},
        {"preimage": "00"},
        {"more": 1},
    ],
    ids=str,
)
def test_refused(changes: dict[str, Any]) -> None:
    good = runtime_event("name", b"payload")
    parse_dstack_log(dstack_log([good]))
    refused(dstack_log([{**good, **changes}]))


@pytest.mark.parametrize("name", ["imr", "event_type", "digest", "event", "event_payload"])
def test_members_missing(name: str) -> None:
    event = runtime_event("name")
    del event[name]
    refused(dstack_log([event]))


def test_only_runtime_events_leave_their_digest_out() -> None:
    event = runtime_event("", digest=False)
    parse_dstack_log(dstack_log([event]))
    refused(dstack_log([{**event, "event_type": RUNTIME + 1}]))


def test_the_preimage_is_that_of_the_event() -> None:
    good = runtime_event("name", b"payload", version=2)
    parse_dstack_log(dstack_log([good]))
    for text in ('{"type":134217729,"name":"name","payload":"7061796c6f6164"}', ""):
        refused(dstack_log([{**good, "preimage": text.encode().hex()}]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b"[",
        b"\xff",
        dstack_log([runtime_event("a")]) + b"x",
        dstack_log([runtime_event("a")]).replace(b'"imr": 3', b'"imr": 0, "imr": 3'),
        json.dumps([runtime_event("a")] * 16385).encode(),
    ],
    ids=range(8),
)
def test_not_a_list_of_events(data: bytes) -> None:
    refused(data)


def test_compose() -> None:
    digest = hashlib.sha256(COMPOSE).digest()
    assert compose_hash(COMPOSE) == digest
    assert compose_hash(COMPOSE + b"\n") != digest
    assert config_id(digest) == b"\x01" + digest + bytes(15)
