"""Where sealed requests are taken: a socket of uvicorn's own, or streams that it is handed.

uvicorn (and the loop below it) knows TCP and unix sockets. Streams of vsock and of a
virtio-serial port are joined to pairs of unix sockets in this process, with one more copy and
with the same bounds as other connections have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, Final

from cloister.errors import ConfigurationError
from cloister.streams.address import Address, TcpAddress, UnixAddress
from cloister.streams.ends import listener_on
from cloister.streams.forward import Forwarder, ForwardLimits
from cloister.streams.sockets import SocketStream, listen
from cloister.streams.stream import Listener
from cloister.streams.tasks import end
from cloister.worker.server import (
    MAX_CONNECTIONS,
    BoundedHttpProtocol,
    HttpServer,
    listen_tcp,
)

LIMITS: Final = ForwardLimits(streams=MAX_CONNECTIONS, idle_s=3600.0)
"""The worker's own times are shorter; this one is for a peer that died without a word."""


class WayIn:
    """A place to listen that is had already, and is served once the engine has started."""

    def __init__(self, address: Address, listener: socket.socket | Listener) -> None:
        self._address = address
        self._listener = listener

    @property
    def address(self) -> Address:
        """With the port that was taken."""
        if isinstance(self._address, TcpAddress) and isinstance(self._listener, socket.socket):
            host, port = self._listener.getsockname()[:2]
            return TcpAddress(host=host, port=port)
        return self._address

    def server(self, app: Any) -> HttpServer:
        """Serve `app` here."""
        if isinstance(self._listener, socket.socket):
            return HttpServer(app, self._listener)
        return StreamServer(app, self._listener)

    async def aclose(self) -> None:
        """Listen no more."""
        if not isinstance(self._listener, socket.socket):
            await self._listener.aclose()
            return
        self._listener.close()
        if isinstance(self._address, UnixAddress):
            with contextlib.suppress(OSError):
                os.unlink(self._address.path)  # noqa: PTH108 - a path of an address, as it is


async def open_way_in(address: Address) -> WayIn:
    """Listen on `address`; ConfigurationError (``configuration.listen``) where that cannot be."""
    if not isinstance(address, TcpAddress | UnixAddress):
        return WayIn(address, await listener_on(address))
    try:
        if isinstance(address, TcpAddress):
            return WayIn(address, listen_tcp(address.host, address.port))
        return WayIn(address, listen(address))
    except OSError as error:
        raise ConfigurationError(
            f"the worker cannot listen on {address} (errno {error.errno})",
            code="configuration.listen",
        ) from None


class StreamServer(HttpServer):
    """Serves an application on the streams that a listener accepts."""

    def __init__(self, app: Any, listener: Listener) -> None:
        super().__init__(app, None)
        self._forwarder = Forwarder(listener, _Inside(self), limits=LIMITS)
        self._forwarding: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._forwarding = asyncio.create_task(self._forwarder.run())

    async def close(self) -> None:
        """Close every connection, then every stream, and return."""
        await super().close()
        if self._forwarding is not None:
            await end([self._forwarding])

    async def adopt(self, connection: socket.socket) -> None:
        """Serve HTTP on `connection`, which is the server's from now on."""
        await asyncio.get_running_loop().connect_accepted_socket(self._http, connection)

    def _http(self) -> asyncio.Protocol:
        return BoundedHttpProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


class _Inside:
    """Dials the server in this process."""

    def __init__(self, server: StreamServer) -> None:
        self._server = server

    async def dial(self) -> SocketStream:
        ours, theirs = socket.socketpair()
        stream = SocketStream(ours)
        theirs.setblocking(False)
        try:
            await self._server.adopt(theirs)
        except BaseException:
            theirs.close()
            stream.close()
            raise
        return stream

    async def aclose(self) -> None:
        """Nothing is kept between streams."""
