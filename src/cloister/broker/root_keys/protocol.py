"""What the broker asks of its root key, wherever that key lives.

The root key wraps one thing only: the 32-byte master key of a store, from which every other key
of the broker is derived. It is asked when a broker starts and when the root key is replaced, and
never while a worker waits, so a backend may be slow and may be away for a while.
"""

from __future__ import annotations

from typing import Protocol


class RootKey(Protocol):
    """A key that wraps other keys and never leaves its place.

    Every method raises `cloister.errors.ConfigurationError` (code ``root_key.…``) where the place
    refuses or what was wrapped is not its own, and `cloister.errors.FetchError` where it cannot
    be reached. No message holds a key.
    """

    @property
    def name(self) -> str:
        """What people call it, for the audit log: kind and key id, nothing secret."""

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt `plaintext` (at most 256 bytes), authenticated together with `context`."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Decrypt what `wrap` made, for the same `context` only."""
