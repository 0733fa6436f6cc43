"""From a unix socket to a port of the sandbox's own loopback, for engines that know TCP only.

Runs inside the sandbox: standard library only. Bytes go both ways as they are; when either side
closes, what it sent is delivered and the other side is closed, so that a worker that gives up an
answer frees the engine's slot.
"""

from __future__ import annotations

import asyncio
import contextlib

_PIECE = 65_536


class Relay:
    """A listening relay. It ends with its process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, path: str, port: int) -> Relay:
        """Listen at `path` and pass every connection on to `port`."""
        relay = cls(port)
        relay._server = await asyncio.start_unix_server(relay._accept, path)
        return relay

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        ways = {
            asyncio.create_task(_pump(reader, far_writer)),
            asyncio.create_task(_pump(far_reader, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            far_writer.close()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
