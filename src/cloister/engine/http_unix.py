"""A small HTTP/1.1 client for one engine: over a unix socket, or TCP on the loopback.

It does what an engine's front end needs and nothing else (RFC 9112): one request in flight
per connection, answers with a length or chunked, an optional pool of idle connections.
Everything read is bounded; anything unusual ends the connection with EngineError. Body bytes
are handed on in the pieces in which they arrived, so a streamed token costs one read, one
slice and one wake-up.
"""

from __future__ import annotations

import asyncio
import errno
import select
from dataclasses import dataclass
from typing import Final

from cloister.engine.http_wire import MAX_HEAD, ChunkedDecoder, Head, parse_head
from cloister.engine.protocol import (
    NO_DESCRIPTOR,
    PROTOCOL,
    STOPPED,
    TRUNCATED,
    EngineResponse,
)
from cloister.errors import EngineError, MalformedError

_HIGH_WATER: Final = 1 << 18  # unread body bytes at which the engine is asked to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """A unix socket by path (also ``/proc/self/fd/N`` of a socket's own descriptor)."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackAddress:
    """A TCP port of this machine. Checked by whoever makes one from a setting."""

    host: str
    port: int


Address = UnixAddress | LoopbackAddress


class _Connection(asyncio.Protocol):
    """One connection; what arrives goes to the exchange it is busy with."""

    __slots__ = ("_client", "exchange", "lost", "transport")

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self.transport: asyncio.Transport | None = None
        self.exchange: _Exchange | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream connection's transport

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:  # nobody asked: whatever this is, it is not an answer
            self.abort()
        else:
            self.exchange.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._client.forget(self)
        if self.exchange is not None:
            self.exchange.ended("the engine closed the connection before its answer was complete")

    def quiet(self) -> bool:
        """Whether it is open and nothing has arrived that nobody has read yet.

        What waits there was sent before the next request: it cannot be the answer to it.
        """
        if self.lost or self.transport is None:
            return False
        waiting = select.poll()
        try:
            waiting.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
            return not waiting.poll(0)
        except (OSError, ValueError):  # closed already, though nobody was told yet
            return False

    def abort(self) -> None:
        """Close the connection now."""
        self.lost = True
        if self.transport is not None:
            self.transport.abort()


class _Exchange:
    """One request and its answer; iterating it yields the answer's body."""

    __slots__ = (
        "_buffer",
        "_client",
        "_connection",
        "_decoder",
        "_done",
        "_error",
        "_head",
        "_held",
        "_left",
        "_loop",
        "_paused",
        "_ready",
        "_waiter",
        "answered",
    )

    def __init__(self, client: HttpClient, connection: _Connection) -> None:
        self._client = client
        self._connection: _Connection | None = connection
        self._loop = asyncio.get_running_loop()
        self.answered = False  # any byte of an answer was seen
        self._head: Head | None = None
        self._buffer = b""
        self._decoder: ChunkedDecoder | None = None
        self._left = 0
        self._ready: list[bytes] = []
        self._held = 0
        self._paused = False
        self._done = False
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None
        connection.exchange = self

    # -- bytes in ---------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the connection read."""
        self.answered = True
        try:
            if self._head is None:
                data = self._receive_head(data)
            if self._head is not None and (data or not self._done):
                self._receive_body(data)
        except MalformedError as error:
            self._fail(f"the engine's answer is refused: {error}", PROTOCOL)
        waiter = self._waiter
        if waiter is not None and (self._ready or self._done or self._head is not None):
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def ended(self, reason: str) -> None:
        """Note that the connection is gone."""
        self._connection = None
        if not self._done:
            self._fail(reason, TRUNCATED)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _receive_head(self, data: bytes) -> bytes:
        buffer = self._buffer + data
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
        if end < 0:
            if len(buffer) > MAX_HEAD:
                raise MalformedError("the response head is too long")
            self._buffer = buffer
            return b""
        self._buffer = b""
        self._head = head = parse_head(buffer[:end])
        if head.length is None:
            self._decoder = ChunkedDecoder()
        else:
            self._left = head.length
            self._done = head.length == 0
        return buffer[end + 4 :]

    def _receive_body(self, data: bytes) -> None:
        decoder = self._decoder
        if decoder is not None:
            content = decoder.receive(data)
            self._done = decoder.finished
            surplus = decoder.rest
        else:
            content = data[: self._left]
            self._left -= len(content)
            self._done = self._left == 0
            surplus = len(data) - len(content)
        if surplus:
            raise MalformedError("bytes follow the end of the answer")
        if content:
            self._ready.append(content)
            self._held += len(content)
            if self._held > _HIGH_WATER and not self._paused:
                self._pause()

    def _pause(self) -> None:
        if self._connection is not None and self._connection.transport is not None:
            self._paused = True
            self._connection.transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.resume_reading()

    def _fail(self, message: str, code: str) -> None:
        if self._error is None:
            self._error = EngineError(message, code=code)
        self._done = True
        self._drop()

    def _drop(self) -> None:
        """Close the connection, which is what frees the engine's slot."""
        connection = self._connection
        self._connection = None
        if connection is not None:
            connection.exchange = None
            connection.abort()

    # -- the answer out ---------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.release()
            raise
        finally:
            self._waiter = None

    async def exchange(self, message: bytes) -> Head:
        """Send the request and return the head of its answer."""
        connection = self._connection
        if connection is None or connection.transport is None or connection.lost:
            raise EngineError("the connection to the engine is closed", code=TRUNCATED)
        connection.transport.write(message)
        while self._head is None and self._error is None:
            await self._wait()
        if self._head is None:
            raise self._error or EngineError("the engine did not answer", code=TRUNCATED)
        return self._head

    def __aiter__(self) -> _Exchange:
        return self

    async def __anext__(self) -> bytes:
        ready = self._ready
        while not ready:
            if self._error is not None:
                raise self._error
            if self._done:
                self.release()
                raise StopAsyncIteration
            await self._wait()
        data = ready[0] if len(ready) == 1 else b"".join(ready)
        ready.clear()
        self._held = 0
        if self._paused:
            self._resume()
        return data

    def release(self) -> None:
        """Give the connection back after a complete answer, or close it."""
        connection = self._connection
        if connection is None:
            return
        if self._done and self._error is None and self._head is not None and self._head.keep_alive:
            self._connection = None
            connection.exchange = None
            if self._paused and connection.transport is not None:
                connection.transport.resume_reading()
            self._client.keep(connection)
        elif self._done:
            self._drop()
        else:
            self._fail("the request to the engine was given up", TRUNCATED)

    async def aclose(self) -> None:
        """End the exchange. What it had not yet yielded is gone."""
        self.release()
        self._ready.clear()


class HttpClient:
    """Requests to one address. `max_idle` connections are kept for reuse."""

    def __init__(self, address: Address, *, max_idle: int = 0) -> None:
        self._address = address
        self._max_idle = max_idle
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._closed = False

    async def request(
        self, method: str, path: str, body: bytes = b"", *, host: str = "engine"
    ) -> EngineResponse:
        """Send one request; return when the head of its answer is there.

        Only content type and length travel with the body: no header of the caller's ever
        reaches an engine. EngineError when the engine cannot be reached or breaks off.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n"
        if method != "GET":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if not self._max_idle:
            head += "Connection: close\r\n"
        message = head.encode("ascii") + b"\r\n" + body
        while True:
            idle = self._take_idle()
            reused = idle is not None
            connection = idle or await self._connect()
            exchange = _Exchange(self, connection)
            try:
                answer = await exchange.exchange(message)
            except EngineError:
                # An idle connection may close just as it is taken up again; the engine has
                # then not seen the request. A fresh one gets no second try.
                if reused and not exchange.answered and not self._closed:
                    continue
                raise
            return EngineResponse(
                status=answer.status,
                content_type=answer.content_type,
                chunks=exchange,
                close=exchange.aclose,
            )

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EngineError("the engine has been closed", code=STOPPED)

        def make() -> _Connection:
            return _Connection(self)

        try:
            match self._address:
                case UnixAddress(path=path):
                    _, connection = await loop.create_unix_connection(make, path)
                case LoopbackAddress(host=host, port=port):
                    _, connection = await loop.create_connection(make, host, port)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                message = "no file descriptor is free for a connection to the engine"
                raise EngineError(message, code=NO_DESCRIPTOR) from None
            message = f"the engine does not accept connections (errno {error.errno})"
            raise EngineError(message, code=STOPPED) from None
        self._open.add(connection)
        return connection

    def keep(self, connection: _Connection) -> None:
        """Take back a connection whose exchange is complete."""
        if self._closed or connection.lost or len(self._idle) >= self._max_idle:
            connection.abort()
        else:
            self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """Drop a connection that has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close every connection; exchanges in flight end with EngineError."""
        self._closed = True
        for connection in tuple(self._open):
            connection.abort()
