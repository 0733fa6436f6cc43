"""A client's resend must not make a prompt run twice.

A client that re-verifies and seals again sends the same ``Idempotency-Key`` inside the new
seal. The worker remembers (credential, key) from the moment a generation starts, for at least
as long as any request key that could open an older copy exists.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from cloister.worker.replay import Admission

MAX_KEY_BYTES = 255


class IdempotencyMemory:
    """Remembers at most `capacity` pairs, each for `keep_s` seconds on the steady clock.

    Nothing is evicted before its time; when full, `admit` answers FULL.
    """

    __slots__ = ("_capacity", "_keep_s", "_until")

    def __init__(self, *, capacity: int, keep_s: float) -> None:
        self._capacity = capacity
        self._keep_s = keep_s
        self._until: OrderedDict[bytes, float] = OrderedDict()  # in order of expiry

    def __len__(self) -> int:
        return len(self._until)

    def admit(self, credential: bytes, key: bytes, now: float) -> Admission:
        """Test and insert (`credential`, `key`) in one step; `now` is steady time."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        digest = _digest(credential, key)
        if digest in self._until:
            return Admission.SEEN
        if len(self._until) >= self._capacity:
            return Admission.FULL
        self._until[digest] = now + self._keep_s
        return Admission.NEW

    def release(self, credential: bytes, key: bytes) -> None:
        """Forget a pair whose prompt certainly did not run: the engine never took it."""
        self._until.pop(_digest(credential, key), None)


def _digest(credential: bytes, key: bytes) -> bytes:
    return hashlib.sha256(len(credential).to_bytes(4, "big") + credential + key).digest()
