"""A root key that is held in this process once it was opened: AES-256-GCM.

What opens it (a passphrase, a TPM) is the business of the places beside.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import ConfigurationError

KEY_SIZE: Final = 32
_NONCE_SIZE: Final = 12

Random = Callable[[int], bytes]


class LocalRootKey:
    """Wraps as ``nonce ‖ ciphertext ‖ tag``. Its representation shows the name only."""

    def __init__(self, key: bytes, *, name: str, random: Random = os.urandom) -> None:
        """`key` has 32 bytes."""
        if len(key) != KEY_SIZE:
            raise ValueError(f"a root key has {KEY_SIZE} bytes")
        self._cipher = AESGCM(key)
        self._name = name
        self._random = random

    def __repr__(self) -> str:
        return f"<root key: {self._name}>"

    @property
    def name(self) -> str:
        """What people call it."""
        return self._name

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """As `RootKey.wrap`."""
        nonce = self._random(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, plaintext, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As `RootKey.unwrap`."""
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:], context)
        except (InvalidTag, ValueError):
            raise not_ours() from None


def not_ours() -> ConfigurationError:
    """What every root key says of something that it did not wrap."""
    return ConfigurationError(
        "the root key did not wrap this store's master key", code="root_key.refused"
    )
