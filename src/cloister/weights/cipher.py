"""The keys of sealed weights, and what makes one chunk of them.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption
and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015), the way Tink's AES-GCM-HKDF streaming uses
it: HKDF-SHA256 (RFC 5869) derives a key of this one file, and the nonce of each chunk is a prefix
of 7 bytes, the chunk's number in 4 and 1 for the final chunk, 0 for every other.

::

    key id       = HKDF(key, salt = "",   info = FORMAT + " key id",               16 bytes)
    chunk key,
    nonce prefix = HKDF(key, salt = salt, info = FORMAT + " chunks" + SHA-256(header), 32 + 7)
    chunk        = AES-256-GCM(chunk key, nonce, plaintext, no associated data)

A chunk authenticates its number, whether it is the last, and the whole header: with another
header it is another key. The key id tells a wrong key from damage; it reveals nothing of a random
key of 32 bytes. AES-GCM alone commits to no key, so whoever knows two keys could make a chunk
that opens under both; the digests in the header rule that out, and are checked besides.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import AuthenticationError, ConfigurationError
from cloister.weights.header import FORMAT, KEY_ID, Chunk, Header

KEY: Final = 32
_PREFIX: Final = 7

Buffer = bytes | bytearray | memoryview


def key_id(key: bytes) -> bytes:
    """The public name of a weights key; ConfigurationError if it has another size than 32."""
    if len(key) != KEY:
        raise ConfigurationError(
            f"a weights key has {KEY} bytes, and this one {len(key)}", code="weights.key"
        )
    return HKDF(SHA256(), KEY_ID, salt=None, info=f"{FORMAT} key id".encode()).derive(key)


class ChunkCipher:
    """Seals and opens the chunks under one header. Threads may share it."""

    __slots__ = ("_aead", "_prefix")

    def __init__(self, key: bytes, header: Header) -> None:
        """AuthenticationError (code ``weights.key``) if the header names another key."""
        if key_id(key) != header.key_id:
            raise AuthenticationError(
                f"the key is not the one of these weights, whose id is {header.key_id.hex()}",
                code="weights.key",
            )
        info = f"{FORMAT} chunks".encode() + bytes.fromhex(header.sha256)
        derived = HKDF(SHA256(), KEY + _PREFIX, salt=header.salt, info=info).derive(key)
        self._aead = AESGCM(derived[:KEY])
        self._prefix = derived[KEY:]

    def seal_into(self, chunk: Chunk, plaintext: Buffer, out: Buffer) -> None:
        """Write ciphertext and tag of `chunk` to `out`, which is 16 bytes longer."""
        self._aead.encrypt_into(self._nonce(chunk), plaintext, None, out)

    def open_into(self, chunk: Chunk, ciphertext: Buffer, out: Buffer) -> None:
        """Write the plaintext to `out`. What is there after an error must not be used.

        AuthenticationError (code ``weights.chunk``) if it is not this chunk of these weights.
        """
        try:
            self._aead.decrypt_into(self._nonce(chunk), ciphertext, None, out)
        except InvalidTag:
            raise AuthenticationError(
                f"chunk {chunk.number} of the sealed weights is not what was sealed: it was "
                "changed or moved, or it belongs to others",
                code="weights.chunk",
            ) from None

    def _nonce(self, chunk: Chunk) -> bytes:
        return self._prefix + chunk.number.to_bytes(4, "big") + bytes([chunk.final])
