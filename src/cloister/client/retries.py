"""One idempotency key for all the tries of one call, where the SDK sends none.

SDKs made with one well-known generator number their tries (``x-stainless-retry-count``) but name
the call only if told to. A second try would then look like a second wish, and a prompt whose
answer was cut off on the way would run twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

RETRY_COUNT = b"x-stainless-retry-count"
CAPACITY = 1024
"""Calls remembered; one that waits for its retry longer than a thousand others is rare."""


class RetryKeys:
    """The key last given to each call, by what the call says; safe to use from threads.

    Two equal calls at the same time may share a key on a retry. The worker then refuses one of
    them as already run, which errs on the side of running less.
    """

    def __init__(self, new_key: Callable[[], bytes]) -> None:
        self._new_key = new_key
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, retry_count: bytes, *said: bytes) -> bytes:
        """A new key for a first try (count ``0``), that try's own for a later one."""
        digest = hashlib.sha256()
        for part in said:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        call = digest.digest()
        with self._lock:
            key = self._keys.get(call) if retry_count != b"0" else None
            if key is None:
                key = self._new_key()
            self._keys[call] = key
            self._keys.move_to_end(call)
            while len(self._keys) > CAPACITY:
                self._keys.popitem(last=False)
        return key
