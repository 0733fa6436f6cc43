"""The HTTP server for streams that uvicorn does not know: of vsock, and of a virtio-serial port.

They are joined to pairs of unix sockets in this process, with one more copy and with the same
bounds as other connections have.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from cloister.streams.forward import Forwarder, ForwardLimits
from cloister.streams.sockets import SocketStream
from cloister.streams.stream import Listener
from cloister.streams.tasks import end
from cloister.worker.server import MAX_CONNECTIONS, BoundedHttpProtocol, HttpServer

LIMITS: Final = ForwardLimits(streams=MAX_CONNECTIONS, idle_s=3600.0)
"""The worker's own times are shorter; this one is for a peer that died without a word."""


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
