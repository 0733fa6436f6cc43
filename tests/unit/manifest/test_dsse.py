"""Envelopes: the encoding that signatures cover, and one spelling for each envelope."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from cloister.errors import MalformedError
from cloister.manifest.dsse import (
    MAX_SIGNATURES,
    Envelope,
    Signature,
    parse_envelope,
    pre_authentication_encoding,
)
from cloister.strictjson import JsonObject

TYPE = "application/x.test"
ENVELOPE = Envelope(
    payload_type=TYPE,
    payload=b"hello \x00 world",
    signatures=(Signature(key_id="a", data=b"one"), Signature(key_id="b", data=b"two")),
)


def test_the_encoding_is_the_specifications() -> None:
    # protocol.md, "Test vectors" of the specification.
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_are_of_bytes() -> None:
    assert pre_authentication_encoding("é", b"") == "DSSEv1 2 é 0 ".encode()


def test_what_was_written_is_read() -> None:
    assert parse_envelope(ENVELOPE.to_json(), payload_type=TYPE, limit=13) == ENVELOPE


def _without(name: str) -> Callable[[JsonObject], object]:
    return lambda members: members.pop(name)


def _with(name: str, value: object) -> Callable[[JsonObject], object]:
    return lambda members: members.update({name: value})  # type: ignore[dict-item]  # on purpose


@pytest.mark.parametrize(
    "change",
    [
        _without("payload"),
        _without("payloadType"),
        _without("signatures"),
        _with("payloadType", "application/x.other"),
        _with("payload", "aGVsbG8"),
        _with("payload", base64.urlsafe_b64encode(b"\xff\xfe").decode()),
        _with("payload", base64.b64encode(bytes(14)).decode()),
        _with("signatures", {}),
        _with("signatures", [{"keyid": "a", "sig": ""}] * 2),
        _with("signatures", [{"keyid": str(n), "sig": ""} for n in range(MAX_SIGNATURES + 1)]),
        _with("signatures", [{"sig": ""}]),
        _with("signatures", [{"keyid": "a", "sig": "", "cert": ""}]),
        _with("extra", 1),
    ],
)
def test_any_other_spelling_is_refused(change: Callable[[JsonObject], object]) -> None:
    members = ENVELOPE.to_json()
    parse_envelope(members, payload_type=TYPE, limit=13)
    change(members)
    with pytest.raises(MalformedError):
        parse_envelope(members, payload_type=TYPE, limit=13)
