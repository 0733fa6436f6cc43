"""Token buckets: how often one credential, or one source of report requests, may ask."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Hashable

from cloister.worker.settings import RateLimit


class RateLimiter:
    """A bucket per name, at most `max_names` of them.

    When there are more, the one unused for longest is forgotten, and so starts full again:
    with API keys the names are as many as the table has, and for report requests the queue
    bounds the total.
    """

    __slots__ = ("_buckets", "_limit", "_max_names")

    def __init__(self, limit: RateLimit, *, max_names: int) -> None:
        self._limit = limit
        self._max_names = max_names
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: Hashable, now: float) -> int:
        """Take one token at steady time `now`; 0 if granted, else whole seconds to wait."""
        if self._limit.per_minute <= 0:
            return 0
        rate = self._limit.per_minute / 60
        tokens, at = self._buckets.pop(name, (self._limit.burst, now))
        tokens = min(self._limit.burst, tokens + max(0.0, now - at) * rate)
        granted = tokens >= 1
        self._buckets[name] = (tokens - 1 if granted else tokens, now)
        if len(self._buckets) > self._max_names:
            self._buckets.popitem(last=False)
        return 0 if granted else max(1, math.ceil((1 - tokens) / rate))

    def keep_only(self, names: Collection[Hashable]) -> None:
        """Forget every bucket whose name is not among `names`."""
        for name in [name for name in self._buckets if name not in names]:
            del self._buckets[name]
