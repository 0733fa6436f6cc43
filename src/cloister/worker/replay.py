"""The memory that makes a sealed request work at most once (RFC 9458 section 6.5).

The worker's clock belongs to the host, so a window of dates cannot stop a replay by itself.
Every accepted request's encapsulated key is remembered for as long as the key that opens it
exists, and nothing is ever evicted: neither a rewound clock nor a flood of other requests makes
the memory forget. When it is full, the key must go.
"""

from __future__ import annotations

import hashlib
from enum import Enum


class Admission(Enum):
    """What the memory says to a request."""

    NEW = "new"
    SEEN = "seen"
    FULL = "full"


class ReplayMemory:
    """SHA-256 of every ``enc`` accepted under one key. Single-threaded: `admit` has no await."""

    __slots__ = ("_capacity", "_seen")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a replay memory holds at least one request")
        self._capacity = capacity
        self._seen: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def full(self) -> bool:
        """Whether no further request can be accepted under this key."""
        return len(self._seen) >= self._capacity

    def seen(self, enc: bytes) -> bool:
        """Whether `enc` was admitted before; admits nothing."""
        return hashlib.sha256(enc).digest() in self._seen

    def admit(self, enc: bytes) -> Admission:
        """Test and insert in one step, so that two copies arriving together cannot both pass."""
        digest = hashlib.sha256(enc).digest()
        if digest in self._seen:
            return Admission.SEEN
        if self.full:
            return Admission.FULL
        self._seen.add(digest)
        return Admission.NEW
