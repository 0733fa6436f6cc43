"""A small HTTP/1.1 client for one engine: over a unix socket, or TCP on the loopback.

It does what an engine's front end needs and nothing else (RFC 9112): one request in flight
per connection, answers with a length or chunked, an optional pool of idle connections.
Everything read is bounded; anything unusual ends the connection with EngineError. Body bytes
are handed on in the pieces in which they arrived, so a streamed token costs one read, one
slice and one wake-up.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from cloister.engine.protocol import PROTOCOL, STOPPED, TRUNCATED, EngineResponse
from cloister.errors import EngineError, MalformedError

MAX_HEAD: Final = 16_384  # bytes of status line and fields; engines send a few hundred
MAX_FIELDS: Final = 64
MAX_CHUNK_LINE: Final = 256  # size and extensions; real servers send at most 10 bytes
MAX_CHUNK: Final = 1 << 30
MAX_TRAILER: Final = 8_192
_HIGH_WATER: Final = 1 << 18  # unread body bytes at which the engine is asked to wait

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Status and framing of a response; `length` None means chunked."""

    status: int
    content_type: str
    length: int | None
    keep_alive: bool


def parse_head(data: bytes) -> Head:
    """Decode a response head (RFC 9112 sections 4 and 5), without its closing empty line.

    Folded lines, repeated or conflicting framing fields, HTTP/1.0 and answers that end only
    with the connection are refused: the end of an answer must be provable.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_HEAD:
        raise MalformedError("the response head is too long")
    first, *lines = data.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise MalformedError("the status line is not HTTP/1.1")
    status = int(match[1])
    if status < 200:
        raise MalformedError("informational responses are not expected here")
    fields = _parse_fields(lines)
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None:
            raise MalformedError("the framing of the response is not acceptable")
        size = None
    elif status in (204, 304):
        size = 0
    elif length is None or _LENGTH.fullmatch(length) is None:
        raise MalformedError("the response says neither its length nor that it is chunked")
    else:
        size = int(length)
    return Head(
        status=status,
        content_type=fields.get(b"content-type", b"").decode("latin-1"),
        length=size,
        keep_alive=fields.get(b"connection", b"").lower() != b"close",
    )


def _parse_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    if len(lines) > MAX_FIELDS:
        raise MalformedError("the response has too many fields")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise MalformedError("a field line of the response does not decode")
        key = name.lower()
        if key in fields and key in (b"content-length", b"transfer-encoding"):
            raise MalformedError("the response repeats its framing")
        fields[key] = value
    return fields


class ChunkedDecoder:
    """Incremental decoder of the chunked coding (RFC 9112 section 7.1).

    `receive` returns the content in the given bytes, joined. After `finished`, `rest` counts
    the bytes that came after the end; there must be none. Extensions and trailer fields are
    bounded and ignored. Raises MalformedError, and nothing else.
    """

    __slots__ = ("_crlf", "_left", "_partial", "_trailer", "finished", "rest")

    def __init__(self) -> None:
        self._partial = b""
        self._left = 0
        self._crlf = False
        self._trailer = -1  # bytes of trailer section seen; -1 before it
        self.finished = False
        self.rest = 0

    def receive(self, data: bytes) -> bytes:
        """Decode the next bytes of the body."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        parts: list[bytes] = []
        at = 0
        end = len(data)
        while at < end and not self.finished:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._crlf = self._left == 0
            elif self._crlf:
                if end - at < 2:
                    self._partial = data[at:]
                    return parts[0] if len(parts) == 1 else b"".join(parts)
                if data[at : at + 2] != b"\r\n":
                    raise MalformedError("a chunk does not end where it says")
                at += 2
                self._crlf = False
            else:
                at = self._line(data, at)
                if at < 0:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        self.rest += end - at
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, data: bytes, at: int) -> int:
        """Take one line at `at`: a chunk's size, or a trailer field. -1 if it is not all here."""
        limit = MAX_CHUNK_LINE if self._trailer < 0 else MAX_TRAILER
        stop = data.find(b"\r\n", at, at + limit + 2)
        if stop < 0:
            if len(data) - at > limit:
                raise MalformedError("a line of the chunked coding is too long")
            self._partial = data[at:]
            return -1
        if self._trailer >= 0:
            self._trailer += stop + 2 - at
            if self._trailer > MAX_TRAILER:
                raise MalformedError("the trailer section is too long")
            self.finished = stop == at
            return stop + 2
        match = _CHUNK.fullmatch(data, at, stop)
        if match is None:
            raise MalformedError("a chunk size does not decode")
        size = int(match[1], 16)
        if size > MAX_CHUNK:
            raise MalformedError("a chunk is too long")
        if size == 0:
            self._trailer = 0
        self._left = size
        return stop + 2


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
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else await self._connect()
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
