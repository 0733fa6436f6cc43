"""One engine process of a pool: whose it is, what it has served, when it was last heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from enum import StrEnum

from cloister.engine.protocol import (
    HEALTH,
    NO_DESCRIPTOR,
    Engine,
    EngineRequest,
    EngineResponse,
)
from cloister.errors import EngineError
from cloister.worker.hearing import Hearing

PROBE_EVERY_S = 2.0
"""Between two looks at an engine's health."""
MISSES = 3
"""Looks in vain, one after another, after which a process counts as frozen: one may be late on
a machine that is busy or was just suspended."""


class End(StrEnum):
    """Why a process ends. The last group is what nobody asked for."""

    CLOSING = "closing"
    REQUESTS = "requests"
    IDLE = "idle"
    AGE = "age"
    NEWCOMER = "newcomer"

    OVERDUE = "overdue"
    """It was to end, and an answer went on for longer than answers may."""
    ROOM = "room"
    """It was to end, and everybody waited for the room that its last answers took."""
    STOPPED = "stopped"
    FROZEN = "frozen"
    SILENT = "silent"

    @property
    def unasked(self) -> bool:
        """Whether the process failed."""
        return self in (End.STOPPED, End.FROZEN, End.SILENT)


class Member:
    """A started engine, from its first request to its end.

    `limit` is how many requests it may be given, 0 for any number. Times that bound how long
    remains of a prompt stay (`first_at`, `idle_since`, `retired_at`) are the pool's steady
    clock's; silence is the event loop's, which stands still while the machine sleeps.
    """

    __slots__ = (
        "asker",
        "ending",
        "engine",
        "first_at",
        "hearing",
        "idle_since",
        "key",
        "limit",
        "open",
        "retired_at",
        "served",
    )

    def __init__(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        self.engine = engine
        self.key: Hashable = None
        self.asker: Hashable = None
        self.limit = 0
        self.served = 0
        self.open = 0
        self.first_at = 0.0
        self.idle_since = 0.0
        self.retired_at: float | None = None
        self.ending: asyncio.Future[End] = loop.create_future()
        """Set once, to end the process."""
        self.hearing = Hearing(loop.time)

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return self.retired_at is None and not self.ending.done() and self.engine.alive

    @property
    def failed(self) -> bool:
        """Whether it ended, or is being ended, although nobody asked it to."""
        if self.ending.done():
            return self.ending.result().unasked
        return not self.engine.alive

    def begin(self, now: float) -> None:
        """Count one request that it is given."""
        self.first_at = self.first_at if self.served else now
        self.served += 1
        self.open += 1

    def finish(self, now: float) -> None:
        """Count one answer that has ended."""
        self.open -= 1
        self.idle_since = now
        if self.retired_at is not None and not self.open:
            self.end(End.CLOSING)

    def retire(self, now: float, why: End) -> None:
        """Give it nothing more; it ends with its last answer."""
        if self.retired_at is None:
            self.retired_at = now
            if not self.open:
                self.end(why)

    def end(self, why: End) -> None:
        """End the process now, whatever it is doing."""
        if not self.ending.done():
            self.ending.set_result(why)

    async def send(self, request: EngineRequest, ended: Callable[[], None]) -> EngineResponse:
        """Pass `request` on; `ended` is called when its answer has ended, at least once."""
        try:
            with self.hearing.listening(whole=request.whole):
                response = await self.engine.send(request)
        except BaseException:
            ended()
            raise

        async def close() -> None:
            try:
                await response.aclose()
            finally:
                ended()

        return EngineResponse(
            status=response.status,
            content_type=response.content_type,
            chunks=_Heard(self.hearing, response.chunks, ended, whole=request.whole),
            close=close,
        )

    async def frozen(self, probe_s: float) -> None:
        """Return when its server has not answered several times in a row, each in `probe_s`.

        llama.cpp, and the servers that speak its API, answer this path from threads that compute
        nothing, so that a busy engine answers too. What it answers does not matter.
        """
        missed = 0
        while missed < MISSES:
            await asyncio.sleep(PROBE_EVERY_S)
            missed = 0 if await self._answers(probe_s) else missed + 1

    async def _answers(self, probe_s: float) -> bool:
        try:
            async with asyncio.timeout(probe_s):
                response = await self.engine.send(EngineRequest(path=HEALTH))
                await response.aclose()
        except EngineError as error:
            return error.code == NO_DESCRIPTOR  # which says nothing of the engine
        except TimeoutError:
            return False
        return True


class _Heard:
    """An answer passed on, while noting when the engine was heard."""

    __slots__ = ("_ended", "_hearing", "_source", "_whole")

    def __init__(
        self,
        hearing: Hearing,
        chunks: AsyncIterator[bytes],
        ended: Callable[[], None],
        *,
        whole: bool,
    ) -> None:
        self._hearing = hearing
        self._source = aiter(chunks)
        self._ended = ended
        self._whole = whole

    def __aiter__(self) -> _Heard:
        return self

    async def __anext__(self) -> bytes:
        try:
            with self._hearing.listening(whole=self._whole):
                return await anext(self._source)
        except BaseException:  # its regular end too
            self._ended()
            raise
