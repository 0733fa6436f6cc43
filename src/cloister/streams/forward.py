"""Carry streams from one address to another, unread, with bounds.

What an enclave's parent, or the host of a guest without a network card, runs. It holds one chunk
in each direction of a stream: whoever receives slowly slows down whoever sends, from one end to
the other. Above the limit of streams nothing more is accepted, and the carrier makes the next one
wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from cloister.streams.stream import Dialler, Listener, Stream
from cloister.streams.tasks import end

_TURN_CHUNKS = 16
"""Carried one after the other before other streams have their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLimits:
    """The bounds of a forwarder. Times in seconds."""

    streams: int = 256
    idle_s: float = 900.0
    """A stream on which nothing moves in either direction for so long is ended. A model may
    think for minutes before its first word; a connection kept for the next request costs little."""
    pause_s: float = 0.2
    """After a failure to reach the target, so that a caller who tries at once costs little."""

    def __post_init__(self) -> None:
        if self.streams < 1 or self.idle_s <= 0:
            raise ValueError("a forwarder carries at least one stream, for some time")


class Forwarder:
    """Takes streams from `listener` and joins each to a new one of `dialler`.

    `on_reach` is told whenever it changes whether the target can be reached, with the reason.
    """

    def __init__(
        self,
        listener: Listener,
        dialler: Dialler,
        *,
        limits: ForwardLimits | None = None,
        on_reach: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._listener = listener
        self._dialler = dialler
        self._limits = ForwardLimits() if limits is None else limits
        self._on_reach = on_reach
        self._failure: str | None = None
        self._carried: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Forward until cancelled; then every stream is ended. The two ends stay the caller's."""
        room = asyncio.Semaphore(self._limits.streams)
        try:
            while True:
                await room.acquire()
                self._begin(await self._listener.accept(), room)
        finally:
            await end(self._carried)

    def _begin(self, accepted: Stream, room: asyncio.Semaphore) -> None:
        task = asyncio.create_task(self._carry(accepted))
        self._carried.add(task)

        def done(_: object) -> None:
            accepted.close()  # here, since a task may be cancelled before its first step
            self._carried.discard(task)
            room.release()

        task.add_done_callback(done)

    async def _carry(self, accepted: Stream) -> None:
        try:
            dialled = await self._dialler.dial()
        except OSError as error:
            self._reached(_reason(error))
            await asyncio.sleep(self._limits.pause_s)
        else:
            self._reached(None)
            await join(accepted, dialled, idle_s=self._limits.idle_s)

    def _reached(self, failure: str | None) -> None:
        if failure != self._failure:
            self._failure = failure
            self._on_reach(failure)


async def join(one: Stream, other: Stream, *, idle_s: float) -> None:
    """Carry bytes both ways until both directions have ended, one fails, or nothing moves.

    Closes both streams. Failures of carriers end it and are not raised.
    """
    loop = asyncio.get_running_loop()
    directions: list[asyncio.Task[None]] = []
    try:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(idle_s) as limit:

                def moved() -> None:
                    limit.reschedule(loop.time() + idle_s)

                directions.append(asyncio.create_task(_copy(one, other, moved)))
                directions.append(asyncio.create_task(_copy(other, one, moved)))
                await asyncio.gather(*directions)
    finally:
        try:
            await end(directions)
        finally:
            one.close()
            other.close()


async def _copy(source: Stream, target: Stream, moved: Callable[[], None]) -> None:
    chunks = 0
    while data := await source.receive():
        moved()
        await target.send(data)
        moved()
        chunks += 1
        if chunks % _TURN_CHUNKS == 0:
            await asyncio.sleep(0)  # neither has waited, where both ends are quicker than this
    await target.send_end()


def _reason(error: OSError) -> str:
    """In the system's words; never what a name server or a peer said."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return error.strerror or type(error).__name__
