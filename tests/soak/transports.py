"""Ways of a sealed request that no well-behaved HTTP library takes.

Both put only sealed requests on connections of their own; reports go as usual.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

import httpx2

_MSS: Final = 536
_WINDOW: Final = 4096
"""Small segments and a small window: what is not read is then held up in the worker, and not in
the kernel's buffers, which take megabytes on loopback. Both have to be set before connecting."""


class UploadCutError(httpx2.WriteError):
    """This client went away, on purpose."""


class CutUploads(httpx2.AsyncBaseTransport):
    """Sends a part of each sealed request, and goes away."""

    def __init__(self, chosen: random.Random) -> None:
        self._chosen = chosen
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/ohttp":
            return await self._inner.handle_async_request(request)
        message = await _message(request)
        end_of_head = message.index(b"\r\n\r\n") + 4
        part = message[: self._chosen.randrange(end_of_head, len(message))]
        await exchange_raw(str(request.url), part, wait_s=self._chosen.choice((0.05, 0.3)))
        raise UploadCutError("cut", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class TightReads(httpx2.AsyncBaseTransport):
    """Takes answers in small pieces, and none while nobody reads."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/ohttp":
            return await self._inner.handle_async_request(request)
        reader, writer = await _connect_tight(str(request.url))
        try:
            writer.write(await _message(request))
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.close()
            raise httpx2.ReadError(type(error).__name__, request=request) from None
        status, *lines = head[:-4].decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)]
        kept = [field for field in fields if field[0].lower() != "transfer-encoding"]
        return httpx2.Response(
            int(status.split(" ")[1]),
            headers=kept,
            stream=_Chunks(reader, writer),
            request=request,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Chunks(httpx2.AsyncByteStream):
    """The chunks of a body (RFC 9112 section 7.1)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while size := int(await self._reader.readline(), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise httpx2.ReadError(type(error).__name__) from None

    async def aclose(self) -> None:
        await go_away(self._writer)


async def _connect_tight(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = urlsplit(url)
    made = socket.socket(socket.AF_INET)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _MSS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
        await asyncio.get_running_loop().sock_connect(made, (target.hostname, target.port))
        return await asyncio.open_connection(sock=made, limit=_WINDOW)
    except BaseException:
        made.close()
        raise


async def _message(request: httpx2.Request) -> bytes:
    """The whole request as it goes over the wire, with a length."""
    body = await request.aread()
    fields = (
        b"%b: %b\r\n" % (name, value)
        for name, value in request.headers.raw
        if name.lower() not in (b"content-length", b"transfer-encoding")
    )
    start = b"POST /ohttp HTTP/1.1\r\n" + b"".join(fields)
    return start + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def exchange_raw(url: str, data: bytes, *, wait_s: float, stay: bool = False) -> bytes:
    """Send bytes; return what comes in `wait_s` seconds, and go away without a farewell.

    With `stay` it is a TimeoutError if the server does not close the connection within them.
    """
    target = urlsplit(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    answer = b""
    try:
        writer.write(data)
        async with asyncio.timeout(wait_s):
            answer = await (reader.read() if stay else reader.read(4096))
    except ConnectionError:
        pass
    except TimeoutError:
        if stay:
            raise
    finally:
        await go_away(writer)
    return answer


async def go_away(writer: asyncio.StreamWriter) -> None:
    """Reset the connection: nothing more is read, and nothing unsent is sent."""
    made = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
