"""The streams of one session on a link: credit, order and bounds (`cloister.streams.frames`).

A session is told what arrived by `handle` and asked what to send by `take`; it does no I/O of its
own. Data waits in one short queue that streams enter in the order of their asking, so that none
starves another. What must not wait for the peer (credit, resets) goes before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cloister.streams.frames import (
    MAX_PAYLOAD_BYTES,
    MAX_STREAMS,
    WINDOW_BYTES,
    Frame,
    Kind,
    encode_credit,
    encode_frame,
)
from cloister.streams.stream import CHUNK_BYTES

_QUEUED_FRAMES: Final = 16
_MAX_RESETS: Final = 1024
"""Unsent. A peer that takes nothing and opens more streams than it may earns one each."""
_MAX_NUMBER: Final = 0xFFFF_FFFF


class ViolationError(Exception):
    """The peer broke the framing's rules: the session is over."""


@dataclass(frozen=True, slots=True)
class _Queued:
    stream: MuxStream
    frame: bytes
    last: bool


class MuxStream:
    """One stream of a session; a `Stream`."""

    def __init__(self, session: Session, number: int) -> None:
        self.number = number
        self._session = session
        self._incoming = bytearray()
        self._allowed = WINDOW_BYTES
        """How much the peer may still send."""
        self._owed = 0
        """How much was read and not yet credited to the peer."""
        self._credit = WINDOW_BYTES
        """How much may still be sent."""
        self._ended = False
        self._end_queued = False
        self._end_sent = False
        self._failure: str | None = None
        self._arrived = asyncio.Event()
        self._credited = asyncio.Event()
        self._sending = asyncio.Lock()

    async def receive(self) -> bytes:
        """As `Stream.receive`."""
        while not self._incoming:
            if self._ended:
                return b""
            self._check()
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._incoming[:CHUNK_BYTES])
        del self._incoming[:CHUNK_BYTES]
        self._owed += len(data)
        if self._owed >= WINDOW_BYTES // 2 and not self._ended and self._failure is None:
            self._session.owe(self)
        return data

    async def send(self, data: bytes) -> None:
        """As `Stream.send`."""
        view = memoryview(data)
        async with self._sending:
            while view:
                await self._wait_for_credit()
                size = min(len(view), self._credit, MAX_PAYLOAD_BYTES)
                frame = encode_frame(Kind.DATA, self.number, bytes(view[:size]))
                await self._session.put(self, frame)
                self._credit -= size
                view = view[size:]

    async def send_end(self) -> None:
        """As `Stream.send_end`."""
        async with self._sending:
            if self._end_queued or self._failure is not None:
                return
            await self._session.put(self, encode_frame(Kind.END, self.number), last=True)
            self._end_queued = True

    def close(self) -> None:
        """As `Stream.close`."""
        if self._ended and self._end_queued:
            self._incoming.clear()  # what is queued still has to reach the peer
        elif self._failure is None:
            self._session.drop(self, "the stream was closed here")

    # What the session calls.

    def take_owed(self) -> int:
        """The credit to give now."""
        size, self._owed = self._owed, 0
        self._allowed += size
        return size

    def end_was_sent(self) -> bool:
        """Whether both directions are over now."""
        self._end_sent = True
        return self._ended

    def handle(self, frame: Frame) -> bool:
        """Take in a DATA, CREDIT or END; whether both directions are over now."""
        match frame.kind:
            case Kind.DATA:
                if self._ended or len(frame.payload) > self._allowed:
                    raise ViolationError
                self._allowed -= len(frame.payload)
                self._incoming += frame.payload
                self._arrived.set()
            case Kind.CREDIT:
                self._credit += frame.credit
                if self._credit > WINDOW_BYTES:
                    raise ViolationError
                self._credited.set()
            case _:
                if self._ended:
                    raise ViolationError
                self._ended = True
                self._arrived.set()
        return self._ended and self._end_sent

    def fail(self, reason: str) -> None:
        """Make both directions fail; what had arrived whole before an end stays readable."""
        if self._failure is None:
            self._failure = reason
            if not self._ended:
                self._incoming.clear()
            self._arrived.set()
            self._credited.set()

    @property
    def failed(self) -> bool:
        """Whether nothing may be sent any more."""
        return self._failure is not None

    async def _wait_for_credit(self) -> None:
        while True:
            self._check()
            if self._end_queued:
                raise ConnectionError("this direction of the stream has ended")
            if self._credit > 0:
                return
            self._credited.clear()
            await self._credited.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise ConnectionResetError(self._failure)


class Session:
    """All streams between one handshake and the next.

    `accepted` gets the streams that the peer opens, or is None where this end opens them. `wake`
    is called when `take` has something to give.
    """

    def __init__(
        self,
        name: bytes,
        *,
        accepted: asyncio.Queue[MuxStream] | None,
        wake: Callable[[], None],
    ) -> None:
        self.name = name
        self._accepted = accepted
        self._wake = wake
        self._streams: dict[int, MuxStream] = {}
        self._frames: deque[_Queued] = deque()
        self._room = asyncio.Semaphore(_QUEUED_FRAMES)
        self._resets: deque[int] = deque()
        self._owing: dict[MuxStream, None] = {}
        self._next = 1
        self._over = False

    async def open(self) -> MuxStream:
        """A new stream of this end; ConnectionError where there are too many, or none any more."""
        if len(self._streams) >= MAX_STREAMS:
            raise ConnectionError(f"the link carries {MAX_STREAMS} streams already")
        if self._next > _MAX_NUMBER:
            raise ConnectionError("the session's numbers of streams are used up")
        stream = MuxStream(self, self._next)
        self._next += 1
        self._streams[stream.number] = stream
        try:
            await self.put(stream, encode_frame(Kind.OPEN, stream.number))
        except BaseException:
            self._forget(stream, "the stream was not opened")
            raise
        return stream

    async def put(self, stream: MuxStream, frame: bytes, *, last: bool = False) -> None:
        """Queue a frame, when there is room."""
        await self._room.acquire()
        if self._over or stream.failed:
            self._room.release()  # and so on to the next who waits
            raise ConnectionResetError("the stream is over")
        self._frames.append(_Queued(stream, frame, last))
        self._wake()

    def owe(self, stream: MuxStream) -> None:
        """Have credit sent for what `stream` was read."""
        self._owing[stream] = None
        self._wake()

    def drop(self, stream: MuxStream, reason: str) -> None:
        """End `stream` at once, here and at the peer; nothing if it is over already."""
        if self._streams.get(stream.number) is stream:
            self._resets.append(stream.number)
            self._wake()
        self._forget(stream, reason)

    def take(self) -> bytes | None:
        """The next bytes to send, if any."""
        if self._resets:
            return encode_frame(Kind.RESET, self._resets.popleft())
        while self._owing:
            stream = next(iter(self._owing))
            del self._owing[stream]
            if not stream.failed:
                return encode_credit(stream.number, stream.take_owed())
        while self._frames:
            queued = self._frames.popleft()
            self._room.release()
            if queued.stream.failed:
                continue  # its RESET is on the way, or was received
            if queued.last and queued.stream.end_was_sent():
                self._streams.pop(queued.stream.number, None)
            return queued.frame
        return None

    def handle(self, frame: Frame) -> None:
        """Take in one frame of a stream; ViolationError where it breaks a rule."""
        if frame.kind is Kind.OPEN:
            self._handle_open(frame.stream)
            return
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # dropped here while this was on its way
        if frame.kind is Kind.RESET:
            self._forget(stream, "the peer has closed the stream")
        elif stream.handle(frame):
            self._streams.pop(stream.number, None)

    def fail(self, reason: str) -> None:
        """End every stream; nothing is sent any more."""
        self._over = True
        for stream in list(self._streams.values()):
            self._forget(stream, reason)
        self._room.release()

    def _handle_open(self, number: int) -> None:
        if self._accepted is None or number in self._streams:
            raise ViolationError
        # Streams that were reset before anybody took them still wait there.
        if len(self._streams) >= MAX_STREAMS or self._accepted.qsize() >= MAX_STREAMS:
            if len(self._resets) >= _MAX_RESETS:
                raise ViolationError
            self._resets.append(number)
            self._wake()
            return
        stream = MuxStream(self, number)
        self._streams[number] = stream
        self._accepted.put_nowait(stream)

    def _forget(self, stream: MuxStream, reason: str) -> None:
        self._streams.pop(stream.number, None)
        self._owing.pop(stream, None)
        stream.fail(reason)
