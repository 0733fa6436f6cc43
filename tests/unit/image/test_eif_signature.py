"""Signed enclave images: who signed PCR0, checked against an unaltered twin each time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.image.eif_signature import (
    authenticate_image_signature,
    parse_image_signature,
    sign_image,
)
from support.certificates import END, NOW, START, named

PCR0 = bytes(range(48))
CURVES = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())


def certified(public: Any, signer: Any) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(named("image signer"))
        .issuer_name(named("image signer"))
        .public_key(public)
        .serial_number(7)
        .not_valid_before(START)
        .not_valid_after(END)
        .sign(signer, hashes.SHA384())
    )


KEY = ec.derive_private_key(12345, ec.SECP384R1())
CERTIFICATE = certified(KEY.public_key(), KEY)
SIGNED = sign_image(PCR0, certificate=CERTIFICATE, key=KEY)


def authenticate(section: bytes, pcr0: bytes = PCR0) -> None:
    authenticate_image_signature(parse_image_signature(section), pcr0=pcr0, at=NOW)


def altered(change: Callable[[list[Any]], None]) -> bytes:
    """The section with its COSE_Sign1 changed."""
    section = cbor2.loads(SIGNED)
    envelope = cbor2.loads(bytes(section[0]["signature"]))
    change(envelope)
    section[0]["signature"] = list(cbor2.dumps(envelope))
    return cbor2.dumps(section)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_signature_holds_and_repeats(curve: ec.EllipticCurve) -> None:
    key = ec.derive_private_key(99, curve)
    certificate = certified(key.public_key(), key)
    section = sign_image(PCR0, certificate=certificate, key=key)
    authenticate(section)
    assert section == sign_image(PCR0, certificate=certificate, key=key)
    parsed = parse_image_signature(section)
    assert parsed.certificate_der == certificate.public_bytes(Encoding.DER)


def test_the_bytes_are_those_of_aws_tool() -> None:
    """Lists of numbers where bytes are meant, members in their order, no tag."""
    section = cbor2.loads(SIGNED)
    assert list(section[0]) == ["signing_certificate", "signature"]
    assert bytes(section[0]["signing_certificate"]).startswith(b"-----BEGIN CERTIFICATE-----")
    protected, unprotected, payload, signature = cbor2.loads(bytes(section[0]["signature"]))
    assert protected == bytes.fromhex("a1013822")
    assert unprotected == {}
    assert payload == (
        b"\xa2\x6eregister_index\x00\x6eregister_value\x98\x30"
        + b"".join(cbor2.dumps(number) for number in PCR0)
    )
    assert len(signature) == 96


REFUSED: dict[str, Callable[[list[Any]], None]] = {
    "flipped signature": lambda it: it.__setitem__(3, it[3][:-1] + bytes([it[3][-1] ^ 1])),
    "short signature": lambda it: it.__setitem__(3, it[3][:-1]),
    "the same numbers written longer": lambda it: it.__setitem__(
        3, it[3][:48] + b"\0" + it[3][48:]
    ),
    "another algorithm": lambda it: it.__setitem__(0, cbor2.dumps({1: -7})),
    "another register": lambda it: it.__setitem__(
        2, cbor2.dumps({"register_index": 1, "register_value": list(PCR0)})
    ),
    "another value": lambda it: it.__setitem__(
        2, cbor2.dumps({"register_index": 0, "register_value": list(PCR0[::-1])})
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_altered_signature_is_refused(name: str) -> None:
    authenticate(altered(lambda envelope: None))
    with pytest.raises(AuthenticationError):
        authenticate(altered(REFUSED[name]))


def test_another_image_is_refused() -> None:
    authenticate(SIGNED)
    with pytest.raises(AuthenticationError, match="another PCR0"):
        authenticate(SIGNED, PCR0[::-1])


def test_another_certificate_is_refused() -> None:
    other = ec.derive_private_key(5, ec.SECP384R1())
    section = cbor2.loads(SIGNED)
    pem = certified(other.public_key(), other).public_bytes(Encoding.PEM)
    section[0]["signing_certificate"] = list(pem)
    with pytest.raises(AuthenticationError, match="does not hold"):
        authenticate(cbor2.dumps(section))


@pytest.mark.parametrize("at", [START - timedelta(seconds=1), END + timedelta(seconds=1)])
def test_a_certificate_has_its_time(at: Any) -> None:
    parsed = parse_image_signature(SIGNED)
    authenticate_image_signature(parsed, pcr0=PCR0, at=START)
    authenticate_image_signature(parsed, pcr0=PCR0, at=END)
    with pytest.raises(AuthenticationError, match="not current"):
        authenticate_image_signature(parsed, pcr0=PCR0, at=at)


def test_keys_that_cannot_sign_images() -> None:
    with pytest.raises(ConfigurationError, match="not the key"):
        sign_image(PCR0, certificate=CERTIFICATE, key=ec.derive_private_key(5, ec.SECP384R1()))
    koblitz = ec.derive_private_key(5, ec.SECP256K1())
    with pytest.raises(ConfigurationError, match="P-256"):
        sign_image(PCR0, certificate=certified(koblitz.public_key(), koblitz), key=koblitz)


def test_certificates_that_cannot_vouch_for_images() -> None:
    section = cbor2.loads(SIGNED)
    for key in (
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.derive_private_key(5, ec.SECP256K1()),
    ):
        pem = certified(key.public_key(), key).public_bytes(Encoding.PEM)
        section[0]["signing_certificate"] = list(pem)
        with pytest.raises(AuthenticationError, match="by a key"):
            authenticate(cbor2.dumps(section))


ENTRY = cbor2.loads(SIGNED)[0]
ENVELOPE = cbor2.loads(bytes(ENTRY["signature"]))


def enveloped(*members: Any) -> list[Any]:
    return [{**ENTRY, "signature": list(cbor2.dumps(list(members)))}]


MALFORMED: dict[str, tuple[Any, str]] = {
    "no list": ({}, "one signature"),
    "a map where a list is": ({0: ENTRY}, "one signature"),
    "empty": ([], "one signature"),
    "two": ([ENTRY, ENTRY], "one signature"),
    "no map": ([1], "a certificate and a signature"),
    "a member more": ([{**ENTRY, "more": 1}], "a certificate and a signature"),
    "bytes": ([{**ENTRY, "signature": b"bytes"}], "as a list of numbers"),
    "large numbers": ([{**ENTRY, "signature": [256]}], "is no byte"),
    "negative numbers": ([{**ENTRY, "signature": [-1]}], "is no byte"),
    "truth values": ([{**ENTRY, "signature": [True]}], "is no byte"),
    "words among numbers": ([{**ENTRY, "signature": [*ENTRY["signature"], "x"]}], "is no byte"),
    "no envelope": (enveloped(1, {}, 2, 3), "is no COSE_Sign1"),
    "an envelope of five": (enveloped(*ENVELOPE, b""), "is no COSE_Sign1"),
    "an envelope that is a map": (
        [{**ENTRY, "signature": list(cbor2.dumps(dict(enumerate(ENVELOPE))))}],
        "is no COSE_Sign1",
    ),
    "unprotected headers": (enveloped(b"", {4: b"x"}, b"", b""), "without unprotected headers"),
    "protected headers that are no bytes": (enveloped(1, *ENVELOPE[1:]), "is no COSE_Sign1"),
    "a payload that is no bytes": (
        enveloped(*ENVELOPE[:2], "payload", ENVELOPE[3]),
        "is no COSE_Sign1",
    ),
    "a signature that is no bytes": (enveloped(*ENVELOPE[:3], "signature"), "is no COSE_Sign1"),
    "no certificate": ([{**ENTRY, "signing_certificate": list(b"PEM")}], "does not decode"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_signature_is_malformed(name: str) -> None:
    parse_image_signature(cbor2.dumps(enveloped(*ENVELOPE)))
    value, why = MALFORMED[name]
    with pytest.raises(MalformedError, match=why):
        parse_image_signature(cbor2.dumps(value))


def test_the_algorithm_is_the_keys_even_where_the_signature_holds() -> None:
    """A signer may sign what they like; which hash it is over is not theirs to say."""

    def by_hand(algorithm: int) -> bytes:
        protected = cbor2.dumps({1: algorithm})
        signed = cbor2.dumps(["Signature1", protected, b"", ENVELOPE[2]])
        r, s = utils.decode_dss_signature(KEY.sign(signed, ec.ECDSA(hashes.SHA384())))
        raw = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        return cbor2.dumps(enveloped(protected, {}, ENVELOPE[2], raw))

    authenticate(by_hand(-35))
    with pytest.raises(AuthenticationError, match="another algorithm"):
        authenticate(by_hand(-7))


def test_a_register_has_48_bytes() -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        sign_image(PCR0[:-1], certificate=CERTIFICATE, key=KEY)
