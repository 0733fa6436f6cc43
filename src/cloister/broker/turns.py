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
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

MAX_WAITING: Final = 4096
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of requests that wait, all together."""

T = TypeVar("T")


class BusyError(Exception):
    """Too many wait already."""


@dataclass(slots=True, eq=False)
class _Waiting:
    run: Callable[[], Any]
    done: asyncio.Future[Any]
    size: int


@dataclass(slots=True, eq=False)
class _Line:
    waiting: deque[_Waiting] = field(default_factory=deque)
    size: int = 0
    """Of all of them."""

    def add(self, one: _Waiting) -> None:
        self.waiting.append(one)
        self.size += one.size

    def first(self) -> _Waiting:
        one = self.waiting.popleft()
        self.size -= one.size
        return one

    def last(self) -> _Waiting:
        one = self.waiting.pop()
        self.size -= one.size
        return one


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
        waiting = _Waiting(run, asyncio.get_running_loop().create_future(), size)
        self._lines.setdefault(source, _Line()).add(waiting)
        self._waiting += 1
        self._bytes += size
        self._next()
        result: T = await waiting.done
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
        own = self._lines.get(source, _Line())
        while (crowded := self._waiting >= self._max_waiting) or (
            self._bytes + size > self._max_bytes
        ):
            if crowded:
                longest, length = self._longest(lambda line: len(line.waiting))
                fits = length > len(own.waiting) + 1
            else:
                longest, length = self._longest(lambda line: line.size)
                fits = length > own.size + size
            if not fits:
                raise BusyError
            self._drop_last(longest)

    def _longest(self, length: Callable[[_Line], int]) -> tuple[str, int]:
        source = max(self._lines, key=lambda name: length(self._lines[name]), default="")
        return source, length(self._lines[source]) if self._lines else 0

    def _drop_last(self, source: str) -> None:
        line = self._lines[source]
        waiting = line.last()
        if not line.waiting:
            del self._lines[source]
        self._waiting -= 1
        self._bytes -= waiting.size
        if not waiting.done.done():
            waiting.done.set_exception(BusyError())

    def _next(self) -> None:
        while self._free and self._lines:
            source, line = self._lines.popitem(last=False)
            waiting = line.first()
            if line.waiting:
                self._lines[source] = line  # at the end: the others come first
            self._waiting -= 1
            self._bytes -= waiting.size
            if waiting.done.done():  # cancelled while it waited
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
