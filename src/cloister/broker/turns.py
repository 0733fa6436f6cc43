"""Whose turn it is: first come, first served, and between several sources one after the other.

Decisions run in a few threads (two for SQLite, which changes one thing at a time anyway); whoever
waits stands in the line of the network they come from. A source that sends thousands of requests
lengthens its own line; somebody else's first request is answered next all the same. Within a line
the order is that of arrival, and nobody is overtaken.

All lines together are bounded. Where they are full the longest one loses its last, if whoever comes
has a shorter one ("longest queue drop": Suter, Lakshman, Stiliadis and Choudhury, "Design
considerations for supporting TCP with per-flow queueing", 1998). So a source is refused only where
as many others as there are places wait, none of them with more than it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from queue import SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

MAX_WAITING: Final = 4096
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of requests that wait, all together."""

T = TypeVar("T")


class BusyError(Exception):
    """Too many wait already."""


def choose(
    lengths: Mapping[str, int],
    *,
    missing: int,
    most: int,
    last: Callable[[str], T],
    size: Callable[[T], int],
) -> list[T]:
    """What has to go so that `missing` becomes free: always the `last` of whose line is longest.

    Nothing is changed here, so whoever is refused took nothing from anybody.

    Raises:
        BusyError: it would take something from a line that is no longer than `most`.
    """
    chosen: list[T] = []
    lines = [(-length, number, name) for number, (name, length) in enumerate(lengths.items())]
    heapify(lines)
    while missing > 0:
        if not lines or -lines[0][0] <= most:
            raise BusyError
        length, number, name = lines[0]
        one = last(name)
        chosen.append(one)
        missing -= size(one)
        heapreplace(lines, (length + size(one), number, name))
    return chosen


@dataclass(slots=True, eq=False)
class _Waiting:
    source: str
    run: Callable[[], Any]
    done: asyncio.Future[Any]
    size: int


@dataclass(slots=True, eq=False)
class _Line:
    waiting: OrderedDict[_Waiting, None] = field(default_factory=OrderedDict)
    size: int = 0
    """Of all of them."""


_Begun: TypeAlias = "SimpleQueue[_Waiting | None]"
"""What one thread has to run."""


class Turns:
    """Lines of waiting work. For one event loop; `aclose` at its end."""

    def __init__(
        self, *, threads: int = 1, max_waiting: int = MAX_WAITING, max_bytes: int = MAX_BYTES
    ) -> None:
        # Not an executor: its futures, and the loop's around them, cost more than a challenge. Nor
        # one queue for all: each thing put into it would wake every thread that waits, one after
        # the other, and those would take the interpreter from the one that works.
        self._free: list[_Begun] = [SimpleQueue() for _ in range(threads)]
        self._queues = tuple(self._free)
        self._threads = [
            threading.Thread(
                target=self._work, args=(begun,), name=f"cloister-broker-{number}", daemon=True
            )
            for number, begun in enumerate(self._free)
        ]
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._waiting = 0
        self._bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    async def take(self, source: str, run: Callable[[], T], *, size: int) -> T:
        """Run `run` in a thread when it is its turn; raises BusyError, and what it raises.

        `size` is what is held in memory meanwhile, in bytes. A caller that goes away while it
        waits leaves the line; what runs already is finished.
        """
        self._make_room(source, size)
        waiting = _Waiting(source, run, asyncio.get_running_loop().create_future(), size)
        self._enter(waiting)
        self._next()
        try:
            result: T = await waiting.done
        except asyncio.CancelledError:
            self._leave(waiting)
            raise
        return result

    async def aclose(self) -> None:
        """Let what runs finish; what waits is cancelled."""
        for line in self._lines.values():
            for waiting in line.waiting:
                waiting.done.cancel()
        self._lines.clear()
        await self._idle.wait()
        for begun in self._queues:  # also of threads that were given one more decision meanwhile
            begun.put(None)
        for thread in self._threads:
            thread.join()

    def _make_room(self, source: str, size: int) -> None:
        """Until one more of `source` fits; BusyError where no other line is longer than its own."""
        if self._waiting < self._max_waiting and self._bytes + size <= self._max_bytes:
            return
        own = self._lines.get(source, _Line())
        ends: dict[str, Iterator[_Waiting]] = {}

        def last(name: str) -> _Waiting:
            return next(ends.setdefault(name, reversed(self._lines[name].waiting)))

        dropped = choose(
            {name: len(line.waiting) for name, line in self._lines.items()},
            missing=self._waiting + 1 - self._max_waiting,
            most=len(own.waiting) + 1,
            last=last,
            size=lambda one: 1,
        )
        sizes = {name: line.size for name, line in self._lines.items()}
        for one in dropped:
            sizes[one.source] -= one.size
        dropped += choose(
            sizes,
            missing=sum(sizes.values()) + size - self._max_bytes,
            most=own.size + size,
            last=last,
            size=lambda one: one.size,
        )
        for one in dropped:
            self._leave(one)
            if not one.done.done():
                one.done.set_exception(BusyError())

    def _enter(self, one: _Waiting) -> None:
        line = self._lines.setdefault(one.source, _Line())
        line.waiting[one] = None
        line.size += one.size
        self._waiting += 1
        self._bytes += one.size

    def _leave(self, one: _Waiting) -> None:
        """Out of its line, if it still stands in one."""
        line = self._lines.get(one.source)
        if line is None or one not in line.waiting:
            return
        del line.waiting[one]
        line.size -= one.size
        self._waiting -= 1
        self._bytes -= one.size
        if not line.waiting:
            del self._lines[one.source]

    def _next(self) -> None:
        while self._free and self._lines:
            source, line = next(iter(self._lines.items()))
            waiting = next(iter(line.waiting))
            self._lines.move_to_end(source)  # the others come first
            self._leave(waiting)
            if waiting.done.done():  # cancelled, and not told of it yet
                continue
            self._idle.clear()
            self._free.pop().put(waiting)  # the one that ended last, whose memory is still near

    def _work(self, begun: _Begun) -> None:
        """In a thread: run what has its turn, until the end."""
        while (waiting := begun.get()) is not None:
            result, failed = None, None
            try:
                result = waiting.run()
            except BaseException as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop was closed without `aclose`
                waiting.done.get_loop().call_soon_threadsafe(
                    self._end, begun, waiting, result, failed
                )
            del waiting, result, failed  # what was decided is not kept until the next turn

    def _end(
        self, begun: _Begun, waiting: _Waiting, result: Any, failed: BaseException | None
    ) -> None:
        self._free.append(begun)
        if len(self._free) == len(self._threads):
            self._idle.set()
        self._next()
        if waiting.done.done():  # the caller went away
            return
        if failed is None:
            waiting.done.set_result(result)
        else:
            waiting.done.set_exception(failed)
