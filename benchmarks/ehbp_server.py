"""A server of the EHBP protocol, for the peer's own client to talk to.

Written from its published wire format. Each request carries ``Ehbp-Encapsulated-Key`` (HPKE,
DHKEM X25519, HKDF-SHA256, AES-256-GCM, info ``ehbp request``, empty AAD); bodies both ways are
frames of ``u32be length ‖ ciphertext``; the response's key comes from an exported secret and the
random ``Ehbp-Response-Nonce``. It does no more than that, and opens frames as they arrive: where
this one is slower than it could be, our own side of the comparison would profit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.channel.hpke import (
    Aead,
    Kdf,
    Kem,
    PrivateKey,
    ReceiverContext,
    Suite,
    hkdf_expand,
    hkdf_extract,
    setup_receiver,
)

ENCAPSULATED_KEY = b"ehbp-encapsulated-key"
RESPONSE_NONCE = b"ehbp-response-nonce"
_SUITE = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
_LENGTH = 4


class EhbpServer:
    """The server's key pair."""

    def __init__(self) -> None:
        self._key = PrivateKey.generate(Kem.X25519)
        self.public_key = self._key.public_bytes

    def request(self, encapsulated_key: str) -> EhbpRequest:
        """Begin one request, given its header's value."""
        enc = bytes.fromhex(encapsulated_key)
        return EhbpRequest(setup_receiver(_SUITE, enc, self._key, b"ehbp request"), enc)


class EhbpRequest:
    """Opens one request's frames and seals its response's."""

    def __init__(self, context: ReceiverContext, enc: bytes) -> None:
        self._context = context
        self._enc = enc
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take more of the body; yield the plaintext of every whole frame."""
        buffer = self._buffer
        buffer += data
        at = 0
        with memoryview(buffer) as view:
            while len(view) - at >= _LENGTH:
                end = at + _LENGTH + int.from_bytes(view[at : at + _LENGTH], "big")
                if end > len(view):
                    break
                if end > at + _LENGTH:
                    yield self._context.messages.open(None, view[at + _LENGTH : end])
                at = end
        del buffer[:at]

    def respond(self) -> tuple[str, EhbpSealer]:
        """Return the response nonce, in hex, and what seals the frames."""
        nonce = os.urandom(32)
        prk = hkdf_extract(self._enc + nonce, self._context.export(b"ehbp response", 32))
        return nonce.hex(), EhbpSealer(hkdf_expand(prk, b"key", 32), hkdf_expand(prk, b"nonce", 12))


class EhbpSealer:
    """Seals the frames of one response."""

    __slots__ = ("_base", "_encrypt", "_sequence")

    def __init__(self, key: bytes, base: bytes) -> None:
        self._encrypt = AESGCM(key).encrypt
        self._base = int.from_bytes(base, "big")
        self._sequence = 0

    def frame(self, data: bytes) -> bytes:
        """Return `data` as one frame."""
        sealed = self._encrypt((self._base ^ self._sequence).to_bytes(12, "big"), data, None)
        self._sequence += 1
        return len(sealed).to_bytes(_LENGTH, "big") + sealed
