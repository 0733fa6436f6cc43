"""Requests that are not whole yet, bounded in bytes all together.

Anybody may begin one, on each of thousands of connections, and take their time over it. Where there
is no room, the network that holds most loses its largest, if it holds more than whoever wants in
would: few networks shut nobody out, and one alone has all the room (as `cloister.broker.turns`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from cloister.broker.turns import BusyError, choose

MAX_ARRIVING: Final = 256 * 1024 * 1024
"""Bytes."""


@dataclass(slots=True, eq=False)
class _Request:
    source: str
    timeout: asyncio.Timeout
    held: int = 0
    dropped: bool = False


def _held(one: _Request) -> int:
    return one.held


class Arriving:
    """All requests that arrive. For one event loop."""

    def __init__(self, most: int = MAX_ARRIVING) -> None:
        self._most = most
        self._all = 0
        self._by_source: Counter[str] = Counter()
        self._requests: set[_Request] = set()

    @contextlib.asynccontextmanager
    async def request(self, source: str, *, seconds: float) -> AsyncIterator[Callable[[int], None]]:
        """A request that may take so long; call what is yielded with the size of every piece before
        it is kept.

        Raises:
            TimeoutError: it took longer.
            BusyError: there is no room for it, or what it had was taken by somebody else's.
        """
        one = None
        try:
            async with asyncio.timeout(seconds) as timeout:
                one = _Request(source, timeout)
                self._requests.add(one)
                yield lambda size: self._hold(one, size)
        except TimeoutError:
            if one is not None and one.dropped:
                raise BusyError from None
            raise
        finally:
            if one is not None:
                self._forget(one)

    def _hold(self, one: _Request, size: int) -> None:
        if one.dropped:  # and not told of it yet
            raise BusyError
        missing = self._all + size - self._most
        if missing > 0:
            self._make_room(missing, most=self._by_source[one.source] + size)
        one.held += size
        self._all += size
        self._by_source[one.source] += size

    def _make_room(self, missing: int, *, most: int) -> None:
        by_size: dict[str, list[_Request]] = {}

        def largest(source: str) -> _Request:
            if source not in by_size:
                by_size[source] = sorted(self._of(source), key=_held)
            return by_size[source].pop()

        for one in choose(self._by_source, missing=missing, most=most, last=largest, size=_held):
            self._drop(one)

    def _of(self, source: str) -> list[_Request]:
        return [request for request in self._requests if request.source == source]

    def _drop(self, one: _Request) -> None:
        """End it where it waits, for the next piece of its body."""
        one.dropped = True
        self._forget(one)
        if not one.timeout.expired():
            one.timeout.reschedule(asyncio.get_running_loop().time())

    def _forget(self, one: _Request) -> None:
        if one not in self._requests:
            return
        self._requests.remove(one)
        self._all -= one.held
        self._by_source[one.source] -= one.held
        if not self._by_source[one.source]:
            del self._by_source[one.source]
