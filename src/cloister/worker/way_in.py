"""Where sealed requests are taken: a socket of uvicorn's own, or streams that it is handed.

uvicorn (and the loop below it) knows TCP and unix sockets; what it does not know is served by
`cloister.worker.stream_server`, which only workers import that are asked there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from cloister.errors import ConfigurationError
from cloister.streams.address import Address, TcpAddress, UnixAddress
from cloister.worker.server import HttpServer, listen_tcp

if TYPE_CHECKING:
    from cloister.streams.stream import Listener


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
        from cloister.worker.stream_server import StreamServer

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
        from cloister.streams.ends import listener_on

        return WayIn(address, await listener_on(address))
    try:
        if isinstance(address, TcpAddress):
            return WayIn(address, listen_tcp(address.host, address.port))
        from cloister.streams.sockets import listen

        return WayIn(address, listen(address))
    except OSError as error:
        raise ConfigurationError(
            f"the worker cannot listen on {address} (errno {error.errno})",
            code="configuration.listen",
        ) from None
