"""Envelopes of KMS, those of another implementation, and everything they must not be."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.aws import ber, cms
from cloister.aws.cms import open_enveloped_data, parse_enveloped_data
from cloister.errors import AuthenticationError, MalformedError
from cloister.testing.simulated_kms_envelope import (
    STYLES,
    EnvelopeStyle,
    encode,
    encode_envelope,
    seal_envelope,
)
from support.kms import RSA_KEY

PLAINTEXT = bytes(range(32))
GOOD = seal_envelope(PLAINTEXT, RSA_KEY.public_key())


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("size", [1, 15, 16, 32, 4096])
def test_every_encoding_is_opened(style: EnvelopeStyle, size: int) -> None:
    plaintext = os.urandom(size)
    envelope = seal_envelope(plaintext, RSA_KEY.public_key(), style)
    assert open_enveloped_data(parse_enveloped_data(envelope), RSA_KEY) == plaintext


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl program")
@pytest.mark.parametrize("options", [(), ("-stream", "-indef")], ids=["definite", "indefinite"])
def test_openssls_envelopes_are_opened(tmp_path: Path, options: tuple[str, ...]) -> None:
    certificate = tmp_path / "recipient.pem"
    certificate.write_bytes(_certificate(RSA_KEY).public_bytes(Encoding.PEM))
    plaintext = os.urandom(5000)
    (tmp_path / "in").write_bytes(plaintext)
    command = (
        "openssl", "cms", "-encrypt", "-binary", "-outform", "DER", "-aes-256-cbc", "-keyid",
        *options, "-in", "in", "-out", "out", "-recip", "recipient.pem",
        "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256",
        "-keyopt", "rsa_mgf1_md:sha256",
    )  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    made = (tmp_path / "out").read_bytes()
    assert (made[1] == 0x80) is bool(options)
    assert open_enveloped_data(parse_enveloped_data(made), RSA_KEY) == plaintext


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recipient")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


SHA_1_OID = bytes.fromhex("2b0e03021a")
AES_128_CBC = bytes.fromhex("608648016503040102")
REPLACED = {
    "another content type": (cms.ENVELOPED_DATA, cms.DATA),
    "another inner type": (cms.DATA, cms.ENVELOPED_DATA),
    "PKCS#1 v1.5": (cms.RSAES_OAEP, bytes.fromhex("2a864886f70d010101")),
    "another mask function": (cms.MGF1, cms.P_SPECIFIED),
    "another digest": (cms.SHA_256, bytes.fromhex("608648016503040202")),
    "AES-128": (cms.AES_256_CBC, AES_128_CBC),
    "AES-256-GCM": (cms.AES_256_CBC, bytes.fromhex("60864801650304012e")),
}


@pytest.mark.parametrize(("old", "new"), REPLACED.values(), ids=REPLACED)
def test_no_other_algorithm_is_accepted(old: bytes, new: bytes) -> None:
    assert old in GOOD
    parse_enveloped_data(GOOD)
    with pytest.raises(MalformedError) as caught:
        parse_enveloped_data(GOOD.replace(old, new))
    assert caught.value.code == "kms.envelope_form"


def parts(**changed: bytes) -> bytes:
    """The envelope taken apart and put together, with parts changed."""
    oid = encode(ber.OBJECT_IDENTIFIER, cms.SHA_256)
    sha256 = encode(ber.SEQUENCE, oid + changed.get("null", encode(ber.NULL, b"")))
    mgf1 = encode(ber.SEQUENCE, encode(ber.OBJECT_IDENTIFIER, cms.MGF1) + sha256)
    oaep = changed.get(
        "oaep",
        encode(
            ber.SEQUENCE,
            encode(0xA0, sha256) + encode(0xA1, mgf1) + changed.get("label", b""),
        ),
    )
    recipient = encode(
        ber.SEQUENCE,
        encode(ber.INTEGER, changed.get("recipient_version", b"\x02"))
        + changed.get("identifier", encode(0x80, bytes(20)))
        + encode(ber.SEQUENCE, encode(ber.OBJECT_IDENTIFIER, cms.RSAES_OAEP) + oaep)
        + encode(ber.OCTET_STRING, changed.get("key", bytes(256))),
    )
    algorithm = encode(ber.OBJECT_IDENTIFIER, cms.AES_256_CBC)
    content = encode(
        ber.SEQUENCE,
        encode(ber.OBJECT_IDENTIFIER, cms.DATA)
        + encode(
            ber.SEQUENCE,
            algorithm + encode(ber.OCTET_STRING, changed.get("iv", bytes(16))),
        )
        + changed.get("content", encode(0x80, bytes(32))),
    )
    enveloped = encode(
        ber.SEQUENCE,
        encode(ber.INTEGER, changed.get("version", b"\x02"))
        + changed.get("originator", b"")
        + encode(ber.SET, changed.get("recipients", recipient))
        + content
        + changed.get("attributes", b""),
    )
    return encode(
        ber.SEQUENCE,
        encode(ber.OBJECT_IDENTIFIER, cms.ENVELOPED_DATA) + encode(0xA0, enveloped),
    )


LABEL = encode(
    0xA2,
    encode(
        ber.SEQUENCE,
        encode(ber.OBJECT_IDENTIFIER, cms.P_SPECIFIED) + encode(ber.OCTET_STRING, b""),
    ),
)
SAME = {"the empty label in words": {"label": LABEL}, "no parameters of SHA-256": {"null": b""}}


@pytest.mark.parametrize("changed", [{}, *SAME.values()], ids=["as it is", *SAME])
def test_what_means_the_same_is_read_the_same(changed: dict[str, bytes]) -> None:
    assert parse_enveloped_data(parts(**changed)) == parse_enveloped_data(parts())


CHANGED: dict[str, dict[str, bytes]] = {
    "version 0": {"version": b"\x00"},
    "version in two bytes": {"version": b"\x00\x02"},
    "recipient of version 0": {"recipient_version": b"\x00"},
    "recipient by issuer": {"identifier": encode(0x30, b"")},
    "recipient without a name": {"identifier": encode(0x80, b"")},
    "no recipient": {"recipients": b""},
    "originator": {"originator": encode(0xA0, b"")},
    "attributes": {"attributes": encode(0xA1, b"")},
    "OAEP without parameters": {"oaep": b""},
    "OAEP with default parameters, SHA-1": {"oaep": encode(ber.SEQUENCE, b"")},
    "parameters of SHA-256": {"null": encode(ber.OCTET_STRING, b"x")},
    "a long key": {"key": bytes(513)},
    "a short initialisation vector": {"iv": bytes(15)},
    "half a block": {"content": encode(0x80, bytes(24))},
    "no content": {"content": encode(0x80, b"")},
    "content of another type": {"content": encode(0x81, bytes(32))},
    "content of something else": {"content": encode(0xA0, encode(ber.INTEGER, bytes(16)))},
    "a lot of content": {"content": encode(0x80, bytes(17 * 1024))},
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_nothing_else_is_read(changed: dict[str, bytes]) -> None:
    with pytest.raises(MalformedError):
        parse_enveloped_data(parts(**changed))


def _oid(content: bytes) -> bytes:
    return encode(ber.OBJECT_IDENTIFIER, content)


def _hash(content: bytes = cms.SHA_256) -> bytes:
    return encode(ber.SEQUENCE, _oid(content) + encode(ber.NULL, b""))


def _mask(digest: bytes, name: bytes = cms.MGF1) -> bytes:
    return encode(0xA1, encode(ber.SEQUENCE, _oid(name) + digest))


def _label(source: bytes, value: bytes, tag: int = 0xA2) -> bytes:
    return encode(tag, encode(ber.SEQUENCE, _oid(source) + value))


def oaep(*parts: bytes, tag: int = ber.SEQUENCE) -> dict[str, bytes]:
    return {"oaep": encode(tag, b"".join(parts))}


DIGEST, MASK = encode(0xA0, _hash()), _mask(_hash())
EMPTY = encode(ber.OCTET_STRING, b"")
WELL_FORMED: dict[str, tuple[dict[str, bytes], str]] = {
    "a label": (
        oaep(DIGEST, MASK, _label(cms.P_SPECIFIED, encode(ber.OCTET_STRING, b"x"))),
        "has a label",
    ),
    "a label of another kind": (
        oaep(DIGEST, MASK, _label(cms.P_SPECIFIED, encode(ber.NULL, b""))),
        "has a label",
    ),
    "a label from elsewhere": (oaep(DIGEST, MASK, _label(cms.MGF1, EMPTY)), "an empty label"),
    "a label under another tag": (
        oaep(DIGEST, MASK, _label(cms.P_SPECIFIED, EMPTY, tag=0xA3)),
        "other parameters",
    ),
    "a label said twice": (
        oaep(DIGEST, MASK, encode(0xA2, LABEL[2:] + LABEL[2:])),
        "other parameters",
    ),
    "one parameter more": (oaep(DIGEST, MASK, LABEL, LABEL), "without its parameters"),
    "parameters as a set": (oaep(DIGEST, MASK, tag=ber.SET), "without its parameters"),
    "a digest under another tag": (oaep(encode(0xA3, _hash()), MASK), "other parameters"),
    "a digest said twice": (oaep(encode(0xA0, _hash() + _hash()), MASK), "other parameters"),
    "a mask under another tag": (
        oaep(DIGEST, encode(0xA3, encode(ber.SEQUENCE, _oid(cms.MGF1) + _hash()))),
        "other parameters",
    ),
    "a mask said twice": (oaep(DIGEST, encode(0xA1, MASK[2:] + MASK[2:])), "other parameters"),
    "SHA-1 as the digest": (oaep(encode(0xA0, _hash(SHA_1_OID)), MASK), "not SHA-256"),
    "SHA-1 in the mask": (oaep(DIGEST, _mask(_hash(SHA_1_OID))), "not SHA-256"),
    "a digest as a set": (
        oaep(encode(0xA0, encode(ber.SET, _oid(cms.SHA_256))), MASK),
        "a digest's algorithm is none",
    ),
    "a digest with more parameters": (
        oaep(
            encode(0xA0, encode(ber.SEQUENCE, _oid(cms.SHA_256) + 2 * encode(ber.NULL, b""))), MASK
        ),
        "a digest's algorithm is none",
    ),
    "an octet string for NULL": ({"null": encode(ber.OCTET_STRING, b"")}, "SHA-256 has parameters"),
    "a NULL with something in it": ({"null": encode(ber.NULL, b"x")}, "SHA-256 has parameters"),
    "a recipient with a long name": (
        {"identifier": encode(0x80, bytes(65))},
        "not named by a key identifier",
    ),
    "a recipient under another tag": (
        {"identifier": encode(0x81, bytes(20))},
        "not named by a key identifier",
    ),
    "a lot of content in pieces": (
        {"content": encode(0xA0, 2 * encode(ber.OCTET_STRING, bytes(9 * 1024)))},
        "more than",
    ),
    "an initialisation vector of another kind": ({"iv": bytes(17)}, "initialisation vector"),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_and_says_something_else(name: str) -> None:
    """Each decodes as BER, so that the reason is the one that it is here for."""
    changed, why = WELL_FORMED[name]
    for good in (parts(), parts(**oaep(DIGEST, MASK)), parts(**oaep(DIGEST, MASK, LABEL))):
        parse_enveloped_data(good)
    made = parts(**changed)
    ber.parse_ber(made)
    with pytest.raises(MalformedError, match=why):
        parse_enveloped_data(made)


AES = _oid(cms.AES_256_CBC)
KIND = _oid(cms.ENVELOPED_DATA)
VERSION = encode(ber.INTEGER, b"\x02")
IV = AES + bytes([ber.OCTET_STRING, 16])
RETAGGED: dict[str, tuple[bytes, int, int, str]] = {
    "its content under another tag": (KIND, len(KIND), 0xA1, "no content"),
    "its version as octets": (VERSION, 0, ber.OCTET_STRING, "not of version 2"),
    "its recipients as a sequence": (VERSION, len(VERSION), ber.SEQUENCE, "exactly one recipient"),
    "an algorithm as a set": (IV, -2, ber.SET, "content's algorithm is not as expected"),
    "an identifier as octets": (IV, 0, ber.OCTET_STRING, "not AES-256-CBC"),
    "its initialisation vector as a number": (IV, len(AES), ber.INTEGER, "initialisation vector"),
}
"""By what stands before the tag, where the tag is from there, the other tag, and the reason."""


@pytest.mark.parametrize("name", RETAGGED)
def test_the_same_bytes_under_another_tag(name: str) -> None:
    before, distance, tag, why = RETAGGED[name]
    made = bytearray(parts())
    parse_enveloped_data(bytes(made))
    made[made.index(before) + distance] = tag
    ber.parse_ber(bytes(made))
    with pytest.raises(MalformedError, match=why):
        parse_enveloped_data(bytes(made))


def test_two_contents_are_refused() -> None:
    good = parts()
    start = good.index(KIND) + len(KIND) + 1
    inner = good[start + 1 + (good[start] & 0x7F) :]
    assert encode(ber.SEQUENCE, KIND + encode(0xA0, inner)) == good
    with pytest.raises(MalformedError, match="no content"):
        parse_enveloped_data(encode(ber.SEQUENCE, KIND + encode(0xA0, inner + inner)))


def test_two_recipients_are_refused() -> None:
    envelope = ber.parse_ber(parts())
    assert envelope.parts
    one = encode(ber.SEQUENCE, b"")
    with pytest.raises(MalformedError, match="exactly one"):
        parse_enveloped_data(parts(recipients=one + one))


def envelope_with(key: bytes, padded: bytes, *, digest: SHA1 | SHA256 | None = None) -> bytes:
    hashed = SHA256() if digest is None else digest
    oaep = padding.OAEP(mgf=padding.MGF1(hashed), algorithm=hashed, label=None)
    iv = bytes(16)
    content_key = key if len(key) == 32 else bytes(32)
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).encryptor()
    content = encryptor.update(padded) + encryptor.finalize()
    encrypted = RSA_KEY.public_key().encrypt(key, oaep)
    return encode_envelope(encrypted, iv, content, EnvelopeStyle())


def test_whatever_does_not_open_is_one_error() -> None:
    padded = bytes(16) + b"\x10" * 16
    key = os.urandom(32)
    good = envelope_with(key, padded)
    assert open_enveloped_data(parse_enveloped_data(good), RSA_KEY) == bytes(16)
    wrong = [
        envelope_with(os.urandom(16), padded),
        envelope_with(key, padded, digest=SHA1()),
        envelope_with(key, bytes(32)),
    ]
    messages = set()
    for envelope, opener in (
        *((envelope, RSA_KEY) for envelope in wrong),
        (good, rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ):
        with pytest.raises(AuthenticationError) as caught:
            open_enveloped_data(parse_enveloped_data(envelope), opener)
        messages.add((caught.value.code, str(caught.value)))
    assert len(messages) == 1


@settings(max_examples=50)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_raises_nothing_else(position: int, change: int) -> None:
    data = bytearray(GOOD)
    data[position] ^= change
    try:
        envelope = parse_enveloped_data(bytes(data))
    except MalformedError:
        return
    assert len(envelope.iv) == 16
