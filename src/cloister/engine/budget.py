"""Memory that answers take while they are put together or wait, all of them together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from cloister.engine.protocol import PROTOCOL
from cloister.errors import EngineError

PER_VALUE: Final = 64
"""Bytes that a decoded value takes at least; every one but the first of a container has a comma."""

Spend = Callable[[int], None]


class Budget:
    """Many answers may each be as long as one may be; all together they have `limit` bytes."""

    __slots__ = ("_limit", "held")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Spend]:
        """What one answer spends by, until it is gone. EngineError when nothing is left."""
        taken = 0

        def spend(size: int) -> None:
            nonlocal taken
            if self.held + size > self._limit:
                raise EngineError("answers take more memory than there is for them", code=PROTOCOL)
            self.held += size
            taken += size

        try:
            yield spend
        finally:
            self.held -= taken
