"""Hybrid Public Key Encryption, base mode (RFC 9180), as contexts that seal, open and export.

`cryptography` offers single-shot HPKE only; Oblivious HTTP needs a context that seals many
chunks and exports a secret, so the key schedule is here, on that package's primitives. Base
mode authenticates nobody: whoever knows the public key can seal.
"""

from __future__ import annotations

import os
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from cloister.channel.hpke_kem import (
    OPEN_FAILED,
    Kem,
    PrivateKey,
    PublicKey,
    hkdf_expand,
    hkdf_extract,
    labeled_expand,
    labeled_extract,
    open_failed,
)
from cloister.errors import ChannelError

if TYPE_CHECKING:
    from cloister.channel.hpke_kem import Random

    Buffer = bytes | bytearray | memoryview

__all__ = [
    "NONCE_SIZE",
    "OPEN_FAILED",
    "TAG_SIZE",
    "Aead",
    "AeadSequence",
    "Kdf",
    "Kem",
    "PrivateKey",
    "PublicKey",
    "ReceiverContext",
    "SenderContext",
    "Suite",
    "hkdf_expand",
    "hkdf_extract",
    "open_failed",
    "setup_receiver",
    "setup_sender",
]

NONCE_SIZE = 12
TAG_SIZE = 16
_MODE_BASE = b"\x00"
_LAST_SEQUENCE = (1 << (8 * NONCE_SIZE)) - 1


class Kdf(IntEnum):
    """HPKE KDF identifiers (RFC 9180 section 7.2)."""

    HKDF_SHA256 = 0x0001


class Aead(IntEnum):
    """HPKE AEAD identifiers (RFC 9180 section 7.3)."""

    AES_128_GCM = 0x0001
    AES_256_GCM = 0x0002
    CHACHA20_POLY1305 = 0x0003

    @property
    def key_size(self) -> int:
        """Nk in bytes."""
        return 16 if self is Aead.AES_128_GCM else 32


class Suite(NamedTuple):
    """One choice of KEM, KDF and AEAD."""

    kem: Kem
    kdf: Kdf
    aead: Aead

    @property
    def hpke_id(self) -> bytes:
        """The 10-byte suite_id of RFC 9180 section 5.1."""
        return b"HPKE" + b"".join(part.to_bytes(2, "big") for part in self)


class AeadSequence:
    """One AEAD key with nonces that count: base nonce XOR sequence number (RFC 9180 5.2).

    Used for HPKE contexts and, with the same rule, for chunked Oblivious HTTP responses. A
    failed open does not advance the sequence.
    """

    __slots__ = ("_base", "_decrypt", "_encrypt", "_sequence")

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        cipher = ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)
        self._encrypt = cipher.encrypt
        self._decrypt = cipher.decrypt
        self._base = int.from_bytes(base_nonce, "big")
        self._sequence = 0

    def seal(self, aad: bytes | None, plaintext: Buffer) -> bytes:
        """Encrypt the next message; the result is 16 bytes longer.

        Raises ChannelError (code "channel.message_limit") before a nonce would repeat.
        """
        sequence = self._sequence
        if sequence >= _LAST_SEQUENCE:
            raise _message_limit()
        nonce = (self._base ^ sequence).to_bytes(NONCE_SIZE, "big")
        self._sequence = sequence + 1
        return self._encrypt(nonce, plaintext, aad)

    def open(self, aad: bytes | None, ciphertext: Buffer) -> bytes:
        """Decrypt the next message. Raises the ChannelError of every failed open."""
        sequence = self._sequence
        if sequence >= _LAST_SEQUENCE:
            raise _message_limit()
        try:
            plaintext = self._decrypt(
                (self._base ^ sequence).to_bytes(NONCE_SIZE, "big"), ciphertext, aad
            )
        except (InvalidTag, ValueError):  # ValueError: shorter than a tag
            raise open_failed() from None
        self._sequence = sequence + 1
        return plaintext


def _message_limit() -> ChannelError:
    return ChannelError("this key has sealed all the messages it may", code="channel.message_limit")


@lru_cache(maxsize=16)
def _key_schedule_context(suite: Suite, info: bytes) -> bytes:
    """`key_schedule_context` of RFC 9180 section 5.1: public, and the same for every message.

    `info` names the key configuration, so a few entries serve all that are in use.
    """
    suite_id = suite.hpke_id
    return (
        _MODE_BASE
        + labeled_extract(suite_id, b"", b"psk_id_hash", b"")
        + labeled_extract(suite_id, b"", b"info_hash", info)
    )


class _Context:
    """What both ends share after setup."""

    __slots__ = ("_exporter_secret", "messages", "suite")

    def __init__(self, suite: Suite, shared_secret: bytes, info: bytes) -> None:
        """KeySchedule of RFC 9180 section 5.1 with empty PSK and PSK identifier."""
        suite_id = suite.hpke_id
        context = _key_schedule_context(suite, info)
        secret = labeled_extract(suite_id, shared_secret, b"secret", b"")
        key = labeled_expand(suite_id, secret, b"key", context, suite.aead.key_size)
        nonce = labeled_expand(suite_id, secret, b"base_nonce", context, NONCE_SIZE)
        self.suite = suite
        self.messages = AeadSequence(suite.aead, key, nonce)
        self._exporter_secret = labeled_expand(suite_id, secret, b"exp", context, 32)

    def export(self, context: bytes, length: int) -> bytes:
        """Return `length` bytes bound to `context` (RFC 9180 section 5.3)."""
        return labeled_expand(self.suite.hpke_id, self._exporter_secret, b"sec", context, length)


class SenderContext(_Context):
    """Seals messages in order; `messages` is the sequence itself, for hot paths."""

    __slots__ = ()

    def seal(self, aad: bytes, plaintext: Buffer) -> bytes:
        """Encrypt the next message. Raises ChannelError at the message limit."""
        return self.messages.seal(aad, plaintext)


class ReceiverContext(_Context):
    """Opens messages in order; `messages` is the sequence itself, for hot paths."""

    __slots__ = ()

    def open(self, aad: bytes, ciphertext: Buffer) -> bytes:
        """Decrypt the next message. Raises the ChannelError of every failed open."""
        return self.messages.open(aad, ciphertext)


def setup_sender(
    suite: Suite, public_key: bytes | PublicKey, info: bytes, *, random: Random = os.urandom
) -> tuple[bytes, SenderContext]:
    """SetupBaseS (RFC 9180 section 5.1.1): return (enc, context).

    Raises MalformedError when the public key cannot be used, and RuntimeError when an opened
    one belongs to another KEM than the suite.
    """
    if isinstance(public_key, bytes):
        public_key = PublicKey(suite.kem, public_key)
    elif public_key.kem is not suite.kem:
        raise RuntimeError("the public key belongs to another KEM than the suite")
    shared_secret, enc = public_key.encapsulate(random)
    return enc, SenderContext(suite, shared_secret, info)


def setup_receiver(
    suite: Suite, enc: bytes, private_key: PrivateKey, info: bytes
) -> ReceiverContext:
    """SetupBaseR (RFC 9180 section 5.1.1).

    Raises the ChannelError of every failed open when `enc` does not fit the key, and
    RuntimeError when the key belongs to another KEM than the suite.
    """
    if private_key.kem is not suite.kem:
        raise RuntimeError("the private key belongs to another KEM than the suite")
    return ReceiverContext(suite, private_key.decapsulate(enc), info)
