"""The HTTP server in front of the worker: uvicorn with httptools, and the bounds it lacks.

uvicorn bounds neither the size of a request's head, nor how long it may take to arrive, nor
the number of connections, when httptools parses. `BoundedHttpProtocol` does. Nothing that the
server would log about a request is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES: Final = 16 * 1024
"""Of a request's head after the first read, of trailers, and of chunk extensions."""
MAX_HEADERS: Final = 64
MAX_CONNECTIONS: Final = 4096
HEAD_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 75
UNREAD_S: Final = 60
"""A peer that takes nothing of what was sent for this long is cut off by the kernel; closing
alone would wait for it for ever. As `Limits.send_s`, for what is not an answer."""
BACKLOG: Final = 1024
_OTHER_DESCRIPTORS: Final = 1024
"""For handshakes, requests inside engines, engine processes, and files."""


class _TooManyHeadersError(Exception):
    """Ends the parsing of a request; httptools turns it into a parser error."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection, closed when a head is too large, too slow, or one of too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and give its first request's head a time to arrive in."""
        super().connection_made(transport)
        self._in_head = True
        self._fields = 0
        self._without_body = 0
        self._body_seen = False
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what brings neither a body nor an end of it."""
        self._body_seen = False
        super().data_received(data)
        if self._timer is None and not self._answering():
            self._arm()  # whatever this was, it ended the server's own wait for a next request
        if self._body_seen:
            self._without_body = 0
            return
        self._without_body += len(data)
        if self._without_body > MAX_HEAD_BYTES and (self._in_head or self._reading_body()):
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        self._fields = 0
        self._without_body = 0
        if self._timer is None:
            self._arm()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse more fields than anybody needs, and drop trailers.

        uvicorn would put those among the fields of the head, where they came soon enough to
        be seen there (RFC 9110 section 6.5.1 forbids that).
        """
        self._fields += 1
        if self._fields > MAX_HEADERS:
            raise _TooManyHeadersError
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._body_seen = True
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body is there."""
        self._body_seen = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._body_seen = True
        super().on_message_complete()

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _reading_body(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.more_body

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves an application on one socket until `close`; leaves signals to whoever runs it.

    Without a `listener` connections come from a subclass.
    """

    def __init__(self, app: Any, listener: socket.socket | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=BoundedHttpProtocol,
                interface="asgi3",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
                backlog=BACKLOG,
            )
        )
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()

    async def open(self) -> None:
        """Begin to serve."""
        listeners = [] if self._listener is None else [self._listener]
        self._task = asyncio.create_task(self.serve(sockets=listeners))
        opened = asyncio.create_task(self._opened.wait())
        await asyncio.wait({self._task, opened}, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if self._task.done():
            self._task.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when connections are accepted."""
        await super().startup(sockets)
        self._opened.set()

    async def close(self) -> None:
        """Close every connection and return."""
        self.should_exit = True
        if self._task is not None:
            await self._task

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not: the worker ends its answers first."""
        yield


def allow_connections(listeners: int) -> bool:
    """Raise this process's limit on descriptors to what the bounds above need; whether it is.

    Connections that nobody has to authenticate for must not take those with which engines are
    asked. The usual limit is 1024, and the kernel lets everybody raise it to the hard one.
    """
    wanted = listeners * MAX_CONNECTIONS + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft == unlimited or soft >= wanted


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket; OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Both inherited by every connection. A sealed piece must not wait for the next one.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
