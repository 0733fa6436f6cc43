"""Attestation documents: members, headers and wrappers, each fault beside its good twin."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest

from cloister.errors import MalformedError
from cloister.evidence.nitro import (
    MAX_DOCUMENT_BYTES,
    PROTECTED,
    DocumentKind,
    parse_document,
    signed_bytes,
    unwrap_document,
)
from cloister.testing.simulated_nitro import DEFAULT_PCRS, MODULE_ID, SimulatedNitro, nsm_answer

NOW = datetime(2026, 11, 3, 12, 0, 0, 123000, tzinfo=UTC)
NITRO = SimulatedNitro(now=NOW)
GOOD = NITRO.document(user_data=b"user", nonce=b"nonce", public_key=b"key")


def refused(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        parse_document(data)
    assert caught.value.code == "malformed"
    return str(caught.value)


def signed(**changes: object) -> bytes:
    return NITRO.sign({**NITRO.payload(), **changes})


def without(*names: str) -> bytes:
    members = NITRO.payload()
    return NITRO.sign({name: members[name] for name in members if name not in names})


def envelope(**changes: Any) -> bytes:
    names = ("protected", "unprotected", "payload", "signature")
    parts = dict(zip(names, cbor2.loads(GOOD), strict=True))
    return cbor2.dumps(list({**parts, **changes}.values()))


def test_members() -> None:
    document = parse_document(GOOD)
    assert document.raw == GOOD
    assert not document.tagged
    assert document.kind is DocumentKind.ENCLAVE
    assert document.module_id == MODULE_ID
    assert document.timestamp == NOW
    assert document.pcrs == DEFAULT_PCRS
    assert document.certificate == NITRO.enclave.der
    assert document.cabundle == tuple(authority.der for authority in NITRO.authorities)
    assert (document.user_data, document.nonce, document.public_key) == (b"user", b"nonce", b"key")


def test_what_is_signed() -> None:
    for size in (0, 23, 24, 255, 256, 4000):
        document = parse_document(signed(user_data=b"x" * min(size, 1024)))
        assert signed_bytes(document) == cbor2.dumps(
            ["Signature1", PROTECTED, b"", document.payload]
        )


def test_tagged() -> None:
    tagged = parse_document(b"\xd2" + GOOD)
    assert tagged.tagged
    assert tagged.payload == parse_document(GOOD).payload
    refused(b"\xd2\xd2" + GOOD)
    refused(b"\xd1" + GOOD)


def test_a_payload_without_a_declared_length() -> None:
    """As newer security modules write it."""
    payload = cbor2.loads(GOOD)[2]
    assert payload[0] == 0xA9
    document = parse_document(envelope(payload=b"\xbf" + payload[1:] + b"\xff"))
    assert document.user_data == b"user"


def test_optional_members_may_be_missing_or_null() -> None:
    names = ("public_key", "user_data", "nonce")
    for data in (signed(**dict.fromkeys(names)), without(*names)):
        document = parse_document(data)
        assert (document.public_key, document.user_data, document.nonce) == (None, None, None)
    assert parse_document(signed(user_data=b"", nonce=b"")).user_data == b""
    refused(signed(public_key=b""))


@pytest.mark.parametrize(
    "changes",
    [
        {"protected": b""},
        {"protected": bytes.fromhex("a1013825")},  # PS256
        {"protected": bytes.fromhex("a10138220041")},
        {"protected": bytes.fromhex("a101390022")},  # ES384 in more bytes
        {"protected": bytes.fromhex("a201382204 40".replace(" ", ""))},
        {"protected": {1: -35}},
        {"unprotected": {4: b"kid"}},
        {"unprotected": None},
        {"unprotected": []},
        {"payload": None},
        {"payload": b""},
        {"payload": cbor2.dumps([])},
        {"payload": cbor2.dumps(["pcrs"])},
        {"payload": cbor2.dumps("pcrs")},
        {"signature": bytes(95)},
        {"signature": bytes(97)},
        {"signature": "x" * 96},
        {"more": b""},
    ],
)
def test_envelope_refused(changes: dict[str, object]) -> None:
    parse_document(envelope())
    refused(envelope(**changes))


@pytest.mark.parametrize("name", ["module_id", "digest", "timestamp", "certificate", "cabundle"])
def test_required_members(name: str) -> None:
    parse_document(signed())
    refused(without(name))
    refused(signed(**{name: None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"module_id": ""},
        {"module_id": "x" * 257},
        {"module_id": b"x"},
        {"digest": "SHA256"},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": True},
        {"timestamp": 2**63},
        {"timestamp": "now"},
        {"pcrs": {}},
        {"pcrs": []},
        {"pcrs": {index: bytes(48) for index in range(33)}},
        {"pcrs": {32: bytes(48)}},
        {"pcrs": {-1: bytes(48)}},
        {"pcrs": {"0": bytes(48)}},
        {"pcrs": {0: bytes(32)}},
        {"pcrs": {0: bytes(49)}},
        {"pcrs": {0: "0" * 48}},
        {"nitrotpm_pcrs": {0: bytes(48)}},
        {"certificate": b""},
        {"certificate": bytes(1025)},
        {"cabundle": []},
        {"cabundle": [b"x"] * 9},
        {"cabundle": [b""]},
        {"cabundle": ["x"]},
        {"cabundle": b"x"},
        {"user_data": bytes(1025)},
        {"user_data": "text"},
        {"nonce": bytes(1025)},
        {"public_key": bytes(1025)},
        {"unknown": None},
        {7: None},
    ],
    ids=str,
)
def test_payload_refused(changes: dict[Any, object]) -> None:
    parse_document(NITRO.sign(NITRO.payload()))
    refused(NITRO.sign({**NITRO.payload(), **changes}))


def test_limits_are_reached() -> None:
    document = parse_document(
        signed(
            pcrs={index: bytes(48) for index in range(32)},
            user_data=bytes(1024),
            nonce=bytes(1024),
            public_key=bytes(1024),
            cabundle=[bytes(1024)] * 8,
            certificate=bytes(1024),
        )
    )
    assert len(document.pcrs) == 32


def test_registers_of_a_nitro_tpm() -> None:
    members = NITRO.payload()
    members["nitrotpm_pcrs"] = members.pop("pcrs")
    document = parse_document(NITRO.sign(members))
    assert document.kind is DocumentKind.NITRO_TPM
    assert document.pcrs == DEFAULT_PCRS


def of_a_nitro_tpm(**changes: object) -> bytes:
    payload = NITRO.payload(
        kind=DocumentKind.NITRO_TPM, pcrs={index: bytes(48) for index in range(24)}
    )
    return NITRO.sign({**payload, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"nitrotpm_pcrs": {}},
        {"nitrotpm_pcrs": None},
        {"nitrotpm_pcrs": [bytes(48)]},
        {"nitrotpm_pcrs": {24: bytes(48)}},  # an enclave has such a register, a TPM none
        {"nitrotpm_pcrs": {-1: bytes(48)}},
        {"nitrotpm_pcrs": {True: bytes(48)}},
        {"nitrotpm_pcrs": {"4": bytes(48)}},
        {"nitrotpm_pcrs": {4: bytes(32)}},
        {"nitrotpm_pcrs": {4: bytes(49)}},
        {"nitrotpm_pcrs": {4: "0" * 48}},
        {"pcrs": {0: bytes(48)}},
        {"digest": "SHA256"},
    ],
)
def test_registers_that_no_nitro_tpm_has(changes: dict[str, object]) -> None:
    assert len(parse_document(of_a_nitro_tpm()).pcrs) == 24
    refused(of_a_nitro_tpm(**changes))


def test_size() -> None:
    refused(GOOD + bytes(1))
    assert "at most" in refused(GOOD + bytes(MAX_DOCUMENT_BYTES))
    refused(GOOD[:-1])


def scale(document: bytes, *, events: bytes = b"\x00", config: bytes = b"\x08{}") -> bytes:
    size = (len(document) << 2 | 1).to_bytes(2, "little")
    return b"\x00\x02" + size + document + events + bytes(64) + config


WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda document: document,
    "tagged": lambda document: b"\xd2" + document,
    "nsm": nsm_answer,
    "scale": scale,
    "base64": base64.b64encode,
    "base64 of nsm": lambda document: base64.b64encode(nsm_answer(document)),
    "base64 of tagged": lambda document: base64.b64encode(b"\xd2" + document) + b"\n",
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name: str) -> None:
    unwrapped = unwrap_document(WRAPPERS[name](GOOD))
    assert parse_document(unwrapped).payload == parse_document(GOOD).payload


@pytest.mark.parametrize("name", ["nsm", "scale"])
def test_wrappers_fit_to_the_last_byte(name: str) -> None:
    good = WRAPPERS[name](GOOD)
    unwrap_document(good)
    for bad in (good + b"\x00", good[:-1]):
        with pytest.raises(MalformedError):
            unwrap_document(bad)


def test_scale_in_its_parts() -> None:
    """Two runtime events, the second with a long payload, and a configuration of four bytes."""
    event = b"\x04a\x08bc" + b"\x00" + b"\x01\x01" + bytes(64)
    assert unwrap_document(scale(GOOD, events=b"\x08" + event, config=b"\x10abcd")) == GOOD
    long = b"\x02\x00\x01\x00" + bytes(1 << 14)  # the four-byte form
    assert unwrap_document(scale(GOOD, config=long)) == GOOD


@pytest.mark.parametrize(
    "bad",
    [
        b"\x01\x02" + scale(GOOD)[2:],  # another version
        b"\x00\x01" + scale(GOOD)[2:],  # another platform's quote
        scale(GOOD, config=b"\x09\x00{}"),  # a length in more bytes than it needs
        scale(GOOD, config=b"\x0a\x00\x00\x00{}"),
        scale(GOOD, config=b"\x03\x08\x00\x00\x00{}"),  # the form for big numbers
        scale(GOOD, config=b"\x03\x00\x02\x00" + bytes(0x8000)),
        cbor2.dumps({"Attestation": {"document": GOOD, "more": 1}}),
        cbor2.dumps({"Attestation": GOOD}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Error": "InvalidArgument"}),
        cbor2.dumps({"Attestation": {"document": GOOD}, "x": 1}),
        base64.b64encode(GOOD) + b"\n\n",
        base64.b64encode(GOOD)[:-1] + b"!",
        base64.b64encode(GOOD) + b"\xff",
        base64.b64encode(b"\xd1" + GOOD),
        base64.urlsafe_b64encode(b"\x84\xff\xff\xff"),
        b"",
        b"x",
        b"\x84" + bytes(65536),
    ],
    ids=range(19),
)
def test_wrappers_refused(bad: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        unwrap_document(bad)
    assert caught.value.code == "malformed"
