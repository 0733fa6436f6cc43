"""Records of measured components: one encoding each, and nothing else is read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import rfc8785

from cloister.errors import MalformedError
from cloister.evidence.component import (
    Component,
    ComponentKind,
    configuration_component,
    configuration_digest,
    is_managed,
    isolation_mode,
    launch_events,
    parse_component,
    separation_mode,
    termination,
)
from cloister.strictjson import Json, JsonObject

DIGEST = "sha256:" + "0a" * 32
PACKAGE = Component(
    kind=ComponentKind.DISTRIBUTION, name="cryptography", version="50.0.2", digest=DIGEST
)
CONFIGURATION = configuration_component("worker", "1", {"b": [1, True, None], "a": "ä"})


def test_the_record_is_this_text() -> None:
    assert PACKAGE.encode() == (
        b'{"digest":"sha256:' + b"0a" * 32 + b'","kind":"distribution"'
        b',"name":"cryptography","version":"50.0.2"}'
    )
    assert CONFIGURATION.digest == configuration_digest({"a": "ä", "b": [1, True, None]})
    assert (
        CONFIGURATION.encode()
        == (
            '{"configuration":{"a":"ä","b":[1,true,null]},"digest":"'
            f'{CONFIGURATION.digest}","kind":"configuration","name":"worker","version":"1"}}'
        ).encode()
    )


@pytest.mark.parametrize(
    "component",
    [
        PACKAGE,
        CONFIGURATION,
        dataclasses.replace(PACKAGE, name=""),
        dataclasses.replace(PACKAGE, name='a "quoted" \\ name'),
        dataclasses.replace(PACKAGE, version="ünïcode 🐍"),
        *(
            dataclasses.replace(PACKAGE, kind=kind)
            for kind in ComponentKind
            if kind is not ComponentKind.CONFIGURATION
        ),
    ],
)
def test_there_and_back_in_canonical_form(component: Component) -> None:
    data = component.encode()
    assert parse_component(data) == component
    assert rfc8785.dumps(json.loads(data)) == data


def record(**changes: object) -> bytes:
    members: JsonObject = {
        "digest": DIGEST,
        "kind": "distribution",
        "name": "cryptography",
        "version": "50.0.2",
    }
    merged = {**members, **changes}
    kept = {name: value for name, value in merged.items() if value != "DROP"}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


MALFORMED = {
    "empty": b"",
    "a list": b"[]",
    "space": b" " + record(),
    "line end": record() + b"\n",
    "another order": json.dumps(
        dict(reversed(json.loads(record()).items())), separators=(",", ":")
    ).encode(),
    "escaped letter": record().replace(b"crypto", b"\\u0063rypto"),
    "a member twice": record()[:-1] + b',"version":"50.0.2"}',
    "a member more": record(more="x"),
    "a member less": record(version="DROP"),
    "unknown kind": record(kind="driver"),
    "unknown kind in capitals": record(kind="MODEL"),
    "kind that is no text": record(kind=7),
    "name that is no text": record(name=7),
    "name with a line end": record(name="a\nb"),
    "name with a control character": record(name="a\x7fb"),
    "name with a direction mark": record(name="a\u202eb"),
    "long name": record(name="a" * 1025),
    "long name with a quote": record(name='"' * 1025),
    "not UTF-8": record().replace(b"crypto", b"\xffrypto"),
    "half a surrogate pair": record().replace(b"crypto", b"\\ud800rypto"),
    "digest of another hash": record(digest="sha1:" + "0" * 40),
    "digest in capitals": record(digest=DIGEST.upper()),
    "short digest": record(digest=DIGEST[:-1]),
    "configuration in a package": record(configuration={}),
    "configuration without one": record(kind="configuration"),
    "configuration that is no object": record(kind="configuration", configuration=[]),
    "configuration that its digest does not cover": record(
        kind="configuration", configuration={"a": 1}
    ),
    "configuration with a fraction": record(kind="configuration", configuration={"a": 1.5}),
    "deep configuration": b'{"configuration":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records(name: str) -> None:
    parse_component(record())
    with pytest.raises(MalformedError) as raised:
        parse_component(MALFORMED[name])
    assert raised.value.code == "eventlog_record"
    assert "crypto" not in str(raised.value)


def test_a_configuration_without_canonical_form_cannot_be_measured() -> None:
    with pytest.raises(MalformedError):
        configuration_component("worker", "1", {"a": float("nan")})  # type: ignore[dict-item]


def test_every_register_is_closed_after_the_last_component() -> None:
    events = launch_events((PACKAGE, CONFIGURATION))
    assert [event.pcr for event in events] == [8, 14, 8, 14, 15]
    assert [event.type for event in events] == [13, 13, 4, 4, 4]
    assert {event.data for event in events[2:]} == {bytes(4)}


@pytest.mark.parametrize(
    ("configuration", "mode"),
    [
        ({"isolation": "sandbox"}, "sandbox"),
        ({"isolation": {"mode": "sandbox", "layers": []}}, "sandbox"),
        ({"isolation": {"layers": []}}, None),
        ({"isolation": {"mode": 1}}, None),
        ({"isolation": None}, None),
        ({"engine": {"isolation": "sandbox"}}, None),
        ({}, None),
    ],
)
def test_isolation_is_read_in_one_place(configuration: JsonObject, mode: str | None) -> None:
    assert isolation_mode(configuration) == mode


@pytest.mark.parametrize(
    ("configuration", "place", "managed", "separation"),
    [
        (
            {"termination": "worker", "managed": True, "separation": "shared"},
            "worker",
            True,
            "shared",
        ),
        ({"termination": ["worker"], "managed": 1, "separation": 1}, None, False, None),
        ({"termination": None, "managed": "true", "separation": None}, None, False, None),
        ({"separation": {"mode": "process-per-client"}}, None, False, "process-per-client"),
        ({"separation": {"mode": 1}}, None, False, None),
        ({"engine": {"termination": "worker", "managed": True}}, None, False, None),
        ({}, None, False, None),
    ],
)
def test_how_a_worker_serves_is_read_in_one_place(
    configuration: JsonObject, place: str | None, managed: bool, separation: str | None
) -> None:
    assert termination(configuration) == place
    assert is_managed(configuration) is managed
    assert separation_mode(configuration) == separation


SUMMARY: JsonObject = {
    "termination": "worker",
    "managed": True,
    "isolation": {"mode": "sandbox", "layers": ["namespaces"]},
}


@pytest.mark.parametrize(
    ("engines", "agree"),
    [
        ([], True),
        ([SUMMARY], True),
        ([SUMMARY, SUMMARY], True),
        ([{}], True),
        ([SUMMARY, {**SUMMARY, "managed": False}], False),
        ([{**SUMMARY, "termination": "in-engine"}], False),
        ([{**SUMMARY, "isolation": {"mode": "sandbox"}}], False),
        ([SUMMARY, None], False),
        ([[SUMMARY]], False),
        ({"0": SUMMARY}, False),
        (None, False),
    ],
)
def test_a_summary_that_an_engines_description_denies_says_nothing(
    engines: Json, agree: bool
) -> None:
    configuration: JsonObject = {**SUMMARY, "engines": engines}
    said = (
        termination(configuration),
        is_managed(configuration),
        isolation_mode(configuration),
    )
    assert (said == ("worker", True, "sandbox")) is agree
