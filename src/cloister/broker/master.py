"""The master key of a store, and everything that is derived from it.

32 random bytes, wrapped by the root key (`cloister.broker.root_keys`) and held in memory while a
broker runs. HKDF-SHA256 (RFC 5869) gives every use a key of its own, named by a label; each
version of each secret has its own key, so no nonce can meet another under one key. What the
database holds is ciphertext bound to where it stands: a row that is copied over another one does
not open there.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.channel.hpke import hkdf_expand, hkdf_extract
from cloister.errors import AuthenticationError

MASTER_SIZE: Final = 32
_SALT_SIZE: Final = 32
_NONCE: Final = bytes(12)
"""A key made with a fresh salt seals one message only, so its nonce may be constant."""

Random = Callable[[int], bytes]


def master_context(store_id: str) -> bytes:
    """The context under which a root key wraps the master key of one store."""
    return b"cloister.broker.master.v1\0" + store_id.encode("ascii")


class MasterKey:
    """The master key of one store. Its representation shows nothing."""

    __slots__ = ("_key", "_mac_key")

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes."""
        if len(key) != MASTER_SIZE:
            raise ValueError(f"a master key has {MASTER_SIZE} bytes")
        self._key = hkdf_extract(b"cloister.broker.v1", key)
        self._mac_key = self._derived(b"sessions", b"")

    def __repr__(self) -> str:
        return "<MasterKey>"

    def seal(self, plaintext: bytes, place: str, *, random: Random) -> bytes:
        """Encrypt for one `place` in the database: 32 bytes of salt, then AES-256-GCM."""
        salt = random(_SALT_SIZE)
        cipher = AESGCM(self._derived(b"secret", salt))
        return salt + cipher.encrypt(_NONCE, plaintext, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Decrypt what `seal` made for this `place`.

        AuthenticationError (``broker.store``) if it was altered, or stood somewhere else.
        """
        salt, ciphertext = sealed[:_SALT_SIZE], sealed[_SALT_SIZE:]
        try:
            cipher = AESGCM(self._derived(b"secret", salt))
            return cipher.decrypt(_NONCE, ciphertext, place.encode())
        except (InvalidTag, ValueError):
            raise AuthenticationError(
                "a sealed entry of the store does not open: the database was altered, or it is"
                " not the one that this root key belongs to",
                code="broker.store",
            ) from None

    def mac(self, data: bytes) -> bytes:
        """HMAC-SHA256 for what others hold meanwhile, workers or the database: 32 bytes."""
        return hmac.digest(self._mac_key, data, "sha256")

    def identity_key(self, sealed: bytes) -> Ed25519PrivateKey:
        """The broker's identity key from its place in the database."""
        return Ed25519PrivateKey.from_private_bytes(self.open(sealed, IDENTITY_PLACE))

    def _derived(self, label: bytes, salt: bytes) -> bytes:
        return hkdf_expand(self._key, label + b"\0" + salt, 32)


IDENTITY_PLACE: Final = "identity"


def secret_place(uri: str, version: int) -> str:
    """Where one version of a secret stands."""
    return f"secret\0{uri}\0{version}"


def policy_place(uri: str) -> str:
    """Where the policy of a secret stands."""
    return f"policy\0{uri}"
