"""The HTTP client against servers that answer well, badly, late, or not to the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cloister.engine.http_unix import HttpClient, LoopbackAddress, UnixAddress
from cloister.engine.protocol import NO_DESCRIPTOR, PROTOCOL, STOPPED, TRUNCATED
from cloister.errors import EngineError

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
LIMIT = 1 << 20
Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A unix-socket server whose every request goes to `handler`; counts what it saw."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.heads: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(task := asyncio.create_task(self.serve(reader, writer)))
        await asyncio.wait({task})
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.sleep(0.02)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                await self.handler(await reader.readexactly(length), reader, writer)
                await writer.drain()
        self.gone.set()


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, handler: Handler, *, max_idle: int = 0
) -> AsyncIterator[tuple[HttpClient, Server]]:
    server = Server(handler)
    path = str(tmp_path / "s")
    listening = await asyncio.start_unix_server(server.accept, path)
    client = HttpClient(UnixAddress(path=path), max_idle=max_idle)
    try:
        yield client, server
    finally:
        client.close()
        listening.close()
        await server.aclose()


def answering(*pieces: bytes, close: bool = False) -> Handler:
    async def handle(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        if close:
            writer.close()

    return handle


async def test_what_is_sent_is_method_path_length_and_body_only(tmp_path: Path) -> None:
    bodies = []

    async def handle(body: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        writer.write(OK + b"Content-Length: 2\r\n\r\nhi")

    async with serving(tmp_path, handle) as (client, server):
        response = await client.request("POST", "/v1/completions", b"{}")
        assert (response.status, response.content_type) == (200, "text/plain")
        assert await response.read(LIMIT) == b"hi"
        assert bodies == [b"{}"]
        assert server.heads == [
            b"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nConnection: close\r\n\r\n"
        ]


async def test_chunks_come_as_they_are_sent(tmp_path: Path) -> None:
    pieces = (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", b"1\r\nb\r\n1\r\nc\r\n")
    async with serving(tmp_path, answering(*pieces, b"0\r\n\r\n")) as (client, _):
        response = await client.request("GET", "/")
        assert [chunk async for chunk in response.chunks] == [b"a", b"bc"]


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
async def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, framing: bytes) -> None:
    handler = answering(OK + framing + b"\r\n\r\n5\r\nabcde\r\n"[:11], close=True)
    async with serving(tmp_path, handler) as (client, _):
        response = await client.request("GET", "/")
        got = b""
        with pytest.raises(EngineError) as caught:
            async for chunk in response.chunks:
                got += chunk
        assert caught.value.code in (TRUNCATED, PROTOCOL)
        assert b"abc" in got


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ((OK + b"Content-Length: 1\r\n\r\nab",), PROTOCOL),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",), PROTOCOL),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore",), PROTOCOL),
        ((b"SSH-2.0\r\n\r\n",), PROTOCOL),
        ((b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000,), PROTOCOL),
        ((b"",), TRUNCATED),
    ],
)
async def test_an_answer_that_is_not_http_is_an_error(
    tmp_path: Path, pieces: tuple[bytes, ...], code: str
) -> None:
    async with serving(tmp_path, answering(*pieces, close=True)) as (client, server):
        with pytest.raises(EngineError) as caught:
            await (await client.request("GET", "/")).read(LIMIT)
        assert caught.value.code == code
        await asyncio.wait_for(server.gone.wait(), 60)


@pytest.mark.parametrize("how", ["cancel-head", "cancel-body", "aclose"])
async def test_giving_up_closes_the_connection(tmp_path: Path, how: str) -> None:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    handler = answering() if how == "cancel-head" else answering(head)
    async with serving(tmp_path, handler, max_idle=2) as (client, server):

        async def use() -> None:
            response = await client.request("GET", "/")
            if how == "aclose":
                await response.aclose()
                return
            async for _ in response.chunks:
                pass

        task = asyncio.create_task(use())
        if how == "aclose":
            await task
        else:
            await asyncio.sleep(0.05)
            assert not server.gone.is_set()
        task.cancel()
        await asyncio.wait({task})
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_a_slow_reader_holds_the_engine_back(tmp_path: Path) -> None:
    sent = 0

    async def handle(body: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _index in range(200):
            writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async with serving(tmp_path, handle) as (client, _):
        response = await client.request("GET", "/")
        await asyncio.sleep(0.2)
        assert sent < 50
        size = 0
        async for chunk in response.chunks:
            size += len(chunk)
        assert (sent, size) == (200, 200 * 65_536)


async def test_connections_are_kept_only_when_asked_and_whole(tmp_path: Path) -> None:
    whole = answering(OK + b"Content-Length: 1\r\n\r\na")
    async with serving(tmp_path, whole, max_idle=1) as (client, server):
        for _ in range(3):
            assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
        assert server.connections == 1
        assert b"close" not in server.heads[0]
    async with serving(tmp_path, whole, max_idle=0) as (client, server):
        for _ in range(3):
            await (await client.request("GET", "/")).read(LIMIT)
        assert server.connections == 3


async def test_closing_an_old_answer_leaves_the_next_one_alone(tmp_path: Path) -> None:
    async with serving(
        tmp_path, answering(OK + b"Content-Length: 2\r\n\r\na", b"b"), max_idle=1
    ) as (client, server):
        first = await client.request("GET", "/")
        assert b"".join([chunk async for chunk in first.chunks]) == b"ab"
        second = await client.request("GET", "/")
        await first.aclose()
        assert await second.read(LIMIT) == b"ab"
        assert server.connections == 1


async def test_an_idle_connection_that_was_closed_is_replaced(tmp_path: Path) -> None:
    handler = answering(OK + b"Content-Length: 1\r\n\r\na", close=True)
    async with serving(tmp_path, handler, max_idle=2) as (client, server):
        for _ in range(3):
            assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
        assert server.connections == 3


async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = answering(OK + b"Content-Length: 1\r\n\r\na", OK + b"Content-Length: 1\r\n\r\nX")
    async with serving(tmp_path, handler, max_idle=2) as (client, server):
        first = await client.request("GET", "/")
        assert [chunk async for chunk in first.chunks] == [b"a"]
        await asyncio.sleep(0.05)
        assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
        assert server.connections == 2
    assert caplog.text == ""


async def test_what_waits_on_an_idle_connection_is_not_taken_for_the_next(tmp_path: Path) -> None:
    """The bytes lie in the kernel when the next request is sent; the loop has not seen them."""
    writers = []

    async def handle(_: bytes, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(OK + b"Content-Length: 1\r\n\r\na")

    async with serving(tmp_path, handle, max_idle=2) as (client, server):
        for _ in range(2):
            assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
        assert server.connections == 1
        with socket.socket(fileno=os.dup(writers[0].get_extra_info("socket").fileno())) as raw:
            raw.send(OK + b"Content-Length: 6\r\n\r\nstolen")
        assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
        assert server.connections == 2


@pytest.mark.parametrize(("coding", "taken"), [(b"identity", True), (b"gzip", False)])
async def test_what_is_compressed_is_refused(tmp_path: Path, coding: bytes, *, taken: bool) -> None:
    handler = answering(OK + b"Content-Encoding: " + coding + b"\r\nContent-Length: 1\r\n\r\na")
    async with serving(tmp_path, handler) as (client, _):
        if taken:
            assert await (await client.request("GET", "/")).read(LIMIT) == b"a"
            return
        with pytest.raises(EngineError, match="compressed") as caught:
            await client.request("GET", "/")
        assert caught.value.code == PROTOCOL


async def test_nobody_there_and_closed(tmp_path: Path) -> None:
    client = HttpClient(UnixAddress(path=str(tmp_path / "none")))
    with pytest.raises(EngineError) as caught:
        await client.request("GET", "/")
    assert caught.value.code == STOPPED
    async with serving(tmp_path, answering(OK + b"Content-Length: 5\r\n\r\nab")) as (client, _):
        response = await client.request("GET", "/")
        client.close()
        with pytest.raises(EngineError):
            await response.read(LIMIT)
        with pytest.raises(EngineError, match="closed"):
            await client.request("GET", "/")


async def test_over_loopback_and_within_a_limit() -> None:
    server = Server(answering(OK + b"Content-Length: 4\r\n\r\nabcd"))
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = HttpClient(LoopbackAddress(host="127.0.0.1", port=port))
    assert await (await client.request("GET", "/")).read(4) == b"abcd"
    with pytest.raises(ValueError, match="longer"):
        await (await client.request("GET", "/")).read(3)
    client.close()
    listening.close()
    await server.aclose()


async def test_a_process_without_a_free_descriptor_says_nothing_of_the_engine(
    tmp_path: Path,
) -> None:
    client = HttpClient(UnixAddress(path=str(tmp_path / "nobody")))
    with pytest.raises(EngineError) as caught:
        await client.request("GET", "/")
    assert caught.value.code == STOPPED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(EngineError) as caught:
            await client.request("GET", "/")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.code == NO_DESCRIPTOR
