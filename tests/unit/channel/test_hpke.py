"""HPKE against published vectors, another implementation, and hostile keys."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as reference
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.channel.hpke import (
    OPEN_FAILED,
    Aead,
    AeadSequence,
    Kdf,
    Kem,
    PrivateKey,
    PublicKey,
    Suite,
    setup_receiver,
    setup_sender,
)
from cloister.channel.hpke_kem import encapsulate, hkdf_expand
from cloister.errors import ChannelError, MalformedError, TruncatedError
from support.channel import EXPORT, HEX, MESSAGE, load

KEY_SCHEDULE = {
    "section": str,
    "kem": int,
    "kdf": int,
    "aead": int,
    "info": HEX,
    "ikmR": HEX,
    "skRm": HEX,
    "pkRm": HEX,
    "enc": HEX,
    "shared_secret": HEX,
    "key": HEX,
    "base_nonce": HEX,
    "exporter_secret": HEX,
    "encryptions": [MESSAGE],
    "exports": [EXPORT],
}
RFC9180 = load("hpke/rfc9180.json", KEY_SCHEDULE | {"ikmE": HEX, "skEm": HEX, "pkEm": HEX})
HYBRID = load("hpke/hpke-pq.json", KEY_SCHEDULE)
XWING = load("hpke/xwing.json", {"sk": HEX, "pk": HEX, "ct": HEX, "ss": HEX})
SUITES = [Suite(kem, Kdf.HKDF_SHA256, aead) for kem in Kem for aead in Aead]


def name(case: dict[str, Any] | Suite) -> str:
    if isinstance(case, Suite):
        return f"{case.kem.name}-{case.aead.name}"
    return f"{case['kem']:#06x}-{case['aead']}"


def suite_of(case: dict[str, Any]) -> Suite:
    return Suite(Kem(case["kem"]), Kdf(case["kdf"]), Aead(case["aead"]))


def unhex(case: dict[str, Any], key: str) -> bytes:
    return bytes.fromhex(case[key])


@pytest.mark.parametrize("case", RFC9180 + HYBRID, ids=name)
def test_key_pairs_derive_to_the_published_ones(case: dict[str, Any]) -> None:
    key = PrivateKey.derive(Kem(case["kem"]), unhex(case, "ikmR"))
    assert key.private_bytes() == unhex(case, "skRm")
    assert key.public_bytes == unhex(case, "pkRm")


@pytest.mark.parametrize("case", RFC9180, ids=name)
def test_the_published_sender_is_reproduced(case: dict[str, Any]) -> None:
    ephemeral = PrivateKey.derive(Kem.X25519, unhex(case, "ikmE")).private_bytes()
    assert ephemeral == unhex(case, "skEm")
    enc, sender = setup_sender(
        suite_of(case), unhex(case, "pkRm"), unhex(case, "info"), random=lambda _: ephemeral
    )
    assert enc == unhex(case, "enc") == unhex(case, "pkEm")
    published = {message["sequence"]: message for message in case["encryptions"]}
    for sequence in range(max(published) + 1):
        message = published.get(sequence)
        if message is None:
            sender.seal(b"", b"")
        else:
            assert sender.seal(unhex(message, "aad"), unhex(message, "pt")) == unhex(message, "ct")


@pytest.mark.parametrize("case", RFC9180 + HYBRID, ids=name)
def test_the_published_receiver_is_reproduced(case: dict[str, Any]) -> None:
    key = PrivateKey(Kem(case["kem"]), unhex(case, "skRm"))
    assert key.decapsulate(unhex(case, "enc")) == unhex(case, "shared_secret")
    suite, info = suite_of(case), unhex(case, "info")
    receiver = setup_receiver(suite, unhex(case, "enc"), key, info)
    filler = AeadSequence(suite.aead, unhex(case, "key"), unhex(case, "base_nonce"))
    published = {message["sequence"]: message for message in case["encryptions"]}
    for sequence in range(max(published) + 1):
        sealed = filler.seal(None, b"")
        message = published.get(sequence)
        if message is None:
            assert receiver.open(b"", sealed) == b""
        else:
            assert receiver.open(unhex(message, "aad"), unhex(message, "ct")) == unhex(
                message, "pt"
            )
    for export in case["exports"]:
        assert receiver.export(unhex(export, "context"), export["length"]) == unhex(export, "value")


@pytest.mark.parametrize("case", XWING)
def test_hybrid_keys_and_secrets_are_x_wing(case: dict[str, Any]) -> None:
    key = PrivateKey(Kem.MLKEM768_X25519, unhex(case, "sk"))
    assert key.public_bytes == unhex(case, "pk")
    assert key.decapsulate(unhex(case, "ct")) == unhex(case, "ss")


def reference_suite(suite: Suite) -> reference.Suite:
    kem = {
        Kem.X25519: reference.KEM.X25519,
        Kem.MLKEM768_X25519: reference.KEM.MLKEM768_X25519,
    }[suite.kem]
    return reference.Suite(kem, reference.KDF.HKDF_SHA256, getattr(reference.AEAD, suite.aead.name))


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_another_implementation_opens_what_we_seal_and_the_reverse(suite: Suite) -> None:
    key = PrivateKey.generate(suite.kem)
    seed = key.private_bytes()
    private: Any
    public: Any
    if suite.kem is Kem.X25519:
        private = X25519PrivateKey.from_private_bytes(seed)
        public = X25519PublicKey.from_public_bytes(key.public_bytes)
    else:
        expanded = hashlib.shake_256(seed).digest(96)
        private = reference.MLKEM768X25519PrivateKey(
            MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
            X25519PrivateKey.from_private_bytes(expanded[64:]),
        )
        public = reference.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(key.public_bytes[:1184]),
            X25519PublicKey.from_public_bytes(key.public_bytes[1184:]),
        )
    other = reference_suite(suite)
    enc, sender = setup_sender(suite, key.public_bytes, b"info")
    assert other.decrypt(enc + sender.seal(b"", b"from us"), private, b"info") == b"from us"
    message = other.encrypt(b"from them", public, b"info")
    size = suite.kem.enc_size
    receiver = setup_receiver(suite, message[:size], key, b"info")
    assert receiver.open(b"", message[size:]) == b"from them"


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_both_ends_agree_message_by_message_and_on_exports(suite: Suite) -> None:
    key = PrivateKey.generate(suite.kem)
    enc, sender = setup_sender(suite, key.public_bytes, b"info")
    assert len(enc) == suite.kem.enc_size and len(key.public_bytes) == suite.kem.public_size
    receiver = setup_receiver(suite, enc, key, b"info")
    for number in range(5):
        sealed = sender.seal(b"aad", b"%d" % number)
        assert receiver.open(b"aad", sealed) == b"%d" % number
    assert sender.export(b"context", 48) == receiver.export(b"context", 48)
    assert sender.export(b"context", 48) != sender.export(b"another", 48)


@pytest.mark.parametrize(
    ("change", "aad"),
    [
        (lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), b"aad"),
        (lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:], b"aad"),
        (lambda sealed: sealed[:-1], b"aad"),
        (lambda sealed: sealed[:15], b"aad"),
        (lambda _: b"", b"aad"),
        (lambda sealed: sealed, b"other"),
    ],
)
def test_every_failed_open_reads_the_same(change: Any, aad: bytes) -> None:
    key = PrivateKey.generate(Kem.X25519)
    enc, sender = setup_sender(SUITES[0], key.public_bytes, b"")
    sealed = sender.seal(b"aad", b"hello")
    receiver = setup_receiver(SUITES[0], enc, key, b"")
    with pytest.raises(ChannelError) as caught:
        receiver.open(aad, change(sealed))
    assert (str(caught.value), caught.value.code) == (OPEN_FAILED, "channel")
    assert not isinstance(caught.value, TruncatedError)
    assert receiver.open(b"aad", sealed) == b"hello"  # the unaltered twin, sequence not advanced


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("aead", list(Aead))
def test_a_context_depends_on_info_key_and_encapsulated_key(kem: Kem, aead: Aead) -> None:
    suite = Suite(kem, Kdf.HKDF_SHA256, aead)
    key, other = PrivateKey.generate(kem), PrivateKey.generate(kem)
    enc, sender = setup_sender(suite, key.public_bytes, b"info")
    sealed = sender.seal(b"", b"hello")
    assert setup_receiver(suite, enc, key, b"info").open(b"", sealed) == b"hello"
    changed = bytes([enc[0] ^ 1]) + enc[1:]
    for attempt in ((enc, key, b"other"), (enc, other, b"info"), (changed, key, b"info")):
        with pytest.raises(ChannelError, match=OPEN_FAILED):
            setup_receiver(suite, *attempt).open(b"", sealed)


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("low_order", [bytes(32), b"\x01" + bytes(31)])
def test_an_x25519_secret_of_zeros_is_refused(kem: Kem, low_order: bytes) -> None:
    """RFC 9180 section 7.1.4: such a point makes the secret known to everybody."""
    suite = Suite(kem, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    key = PrivateKey.generate(kem)
    enc, _ = setup_sender(suite, key.public_bytes, b"")
    setup_receiver(suite, enc, key, b"")
    with pytest.raises(ChannelError, match=OPEN_FAILED):
        setup_receiver(suite, enc[:-32] + low_order, key, b"")
    with pytest.raises(MalformedError, match="cannot be used"):
        setup_sender(suite, key.public_bytes[:-32] + low_order, b"")


def test_an_unreduced_ml_kem_key_is_refused() -> None:
    """FIPS 203 section 7.2: every coefficient of a public key is below 3329."""
    public = PrivateKey.generate(Kem.MLKEM768_X25519).public_bytes
    encapsulate(Kem.MLKEM768_X25519, public)
    with pytest.raises(MalformedError, match="cannot be used"):
        encapsulate(Kem.MLKEM768_X25519, b"\xff\xff\xff" + public[3:])


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("extra", [-1, 1])
def test_wrong_lengths_are_refused(kem: Kem, extra: int) -> None:
    def resized(data: bytes) -> bytes:
        return data[:-1] if extra < 0 else data + b"\0"

    key = PrivateKey.generate(kem)
    _, enc = encapsulate(kem, key.public_bytes)
    key.decapsulate(enc)
    with pytest.raises(ChannelError, match=OPEN_FAILED):
        key.decapsulate(resized(enc))
    with pytest.raises(MalformedError, match="wrong length"):
        encapsulate(kem, resized(key.public_bytes))
    PrivateKey(kem, key.private_bytes())
    with pytest.raises(MalformedError, match="32 bytes"):
        PrivateKey(kem, resized(key.private_bytes()))


def test_no_nonce_is_used_twice() -> None:
    """RFC 9180 section 5.2: the last sequence number is never used."""
    messages = AeadSequence(Aead.AES_128_GCM, bytes(16), bytes(12))
    messages._sequence = 2**96 - 2
    sealed = messages.seal(None, b"last")
    for operation in (messages.seal, messages.open):
        with pytest.raises(ChannelError) as caught:
            operation(None, sealed)
        assert caught.value.code == "channel.message_limit"


def test_misuse_is_a_runtime_error() -> None:
    key = PrivateKey.generate(Kem.X25519)
    suite = Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    with pytest.raises(RuntimeError, match="another KEM"):
        setup_receiver(suite, bytes(1120), key, b"")
    with pytest.raises(RuntimeError, match="32 bytes"):
        PrivateKey.derive(Kem.X25519, bytes(31))
    with pytest.raises(RuntimeError, match="8160"):
        hkdf_expand(bytes(32), b"", 8161)
    assert len(hkdf_expand(bytes(32), b"", 8160)) == 8160


def test_a_private_key_does_not_show_itself() -> None:
    key = PrivateKey.generate(Kem.X25519)
    assert key.private_bytes().hex() not in repr(key)
    assert repr(key) == "<PrivateKey X25519>"


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_an_opened_public_key_serves_many_messages(suite: Suite) -> None:
    key = PrivateKey.generate(suite.kem)
    opened = PublicKey(suite.kem, key.public_bytes)
    encs = set()
    for info in (b"one", b"two", b"one"):
        enc, sender = setup_sender(suite, opened, info)
        encs.add(enc)
        receiver = setup_receiver(suite, enc, key, info)
        assert receiver.open(b"", sender.seal(b"", b"hello")) == b"hello"
    assert len(encs) == 3


def test_an_opened_public_key_is_for_suites_of_its_kem_only() -> None:
    opened = PublicKey(Kem.X25519, PrivateKey.generate(Kem.X25519).public_bytes)
    hybrid = Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
    setup_sender(SUITES[0], opened, b"")
    with pytest.raises(RuntimeError, match="another KEM"):
        setup_sender(hybrid, opened, b"")
