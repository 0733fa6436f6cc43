"""The worker behind its real HTTP server, on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker import server
from cloister.worker.server import HttpServer, listen_tcp
from support.sealed import Sealed, chat, until
from support.worker import Bench, running


@contextlib.asynccontextmanager
async def listening(engine: FakeEngine | None = None) -> AsyncIterator[tuple[Bench, int]]:
    async with running(engine=engine) as bench:
        listener = listen_tcp("127.0.0.1", 0)
        http = HttpServer(bench.worker, listener)
        await http.open()
        try:
            yield bench, listener.getsockname()[1]
        finally:
            await http.close()
            listener.close()


def request(sealed: Sealed, *fields: bytes) -> bytes:
    head = [
        b"POST /ohttp HTTP/1.1",
        b"Host: worker.test",
        b"Content-Type: " + sealed.media_type,
        b"Content-Length: %d" % len(sealed.body),
        *fields,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + sealed.body


async def whole(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the decoded chunks of one chunked response."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return head, body


Connect = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connect]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed the connection."""
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
    return True


async def test_a_sealed_stream_over_a_socket() -> None:
    async with listening() as (bench, port), connected(port) as (reader, writer):
        for _ in range(2):  # the connection stays open
            sealed = bench.peer.seal(document=chat(stream=True))
            writer.write(request(sealed))
            head, body = await whole(reader)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"server:" not in head.lower()
            opened = b"".join(sealed.open(body))
            assert opened.count(b'"delta"') == 33
            assert b"[DONE]" in opened


@pytest.mark.parametrize("tokens", [1, 2, 5])
async def test_every_event_is_flushed_as_it_comes(tokens: int) -> None:
    """An engine that falls silent has kept nothing of what it said before."""
    engine = FakeEngine(script=lambda *_: Answer(stall_after=tokens))
    async with listening(engine) as (bench, port), connected(port) as (reader, writer):
        writer.write(request(bench.peer.seal(document=chat(stream=True))))
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(60):
            for _ in range(tokens):  # each in a piece of its own
                size = int(await reader.readuntil(b"\r\n"), 16)
                await reader.readexactly(size + 2)
        assert engine.running == 1


async def test_a_lost_connection_cancels_the_generation() -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 1000))
    async with listening(engine) as (bench, port):
        async with connected(port) as (reader, writer):
            writer.write(request(bench.peer.seal(document=chat(stream=True))))
            await reader.readuntil(b"\r\n\r\n")
        await until(lambda: engine.cancelled == 1)
        await until(lambda: bench.worker.open_requests == 0)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: 1\r\n" % n for n in range(100)),
        b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 400_000,
        b"GET /" + b"x" * 400_000,
    ],
    ids=["many", "long field", "long target"],
)
async def test_heads_are_bounded(head: bytes) -> None:
    async with listening() as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
        async with connected(port) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(head), 8192):
                    writer.write(head[at : at + 8192])
                    await writer.drain()
                    await asyncio.sleep(0)
            assert await closed(reader)


async def test_trailers_are_bounded() -> None:
    async with listening() as (bench, port), connected(port) as (reader, writer):
        sealed = bench.peer.seal("/v1/models")
        writer.write(
            b"POST /ohttp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: message/ohttp-chunked-req\r\n\r\n"
            + b"%x\r\n" % len(sealed.body)
            + sealed.body
            + b"\r\n0\r\nX-Long: "
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(b"x" * 4096)
                await writer.drain()
                await asyncio.sleep(0.01)
        assert await closed(reader)


async def test_a_head_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.2)
    async with listening() as (_, port):
        for start in (b"", b"GET / HT"):
            async with connected(port) as (reader, writer):
                writer.write(start)
                assert await closed(reader)


@pytest.mark.parametrize(
    ("answered", "after"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
        (b"POST /ohttp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"POST /ohttp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    ],
    ids=["an empty line", "more of a body", "the rest of a body never comes"],
)
async def test_a_connection_between_requests_is_given_up(
    monkeypatch: pytest.MonkeyPatch, answered: bytes, after: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1)
    async with listening() as (_, port), connected(port) as (reader, writer):
        writer.write(answered)
        assert b"HTTP/1.1" in await reader.readuntil(b"\r\n\r\n")
        writer.write(after)
        assert await closed(reader)


async def test_a_connection_that_is_not_read_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "UNREAD_S", 3)  # time enough to find the one place taken
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)

    async def served(port: int) -> bool:
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(OSError):
                return bool(await reader.read(1))
        return False

    async with listening() as (_, port):
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", port))
            silent.setblocking(False)
            asked = b"GET /ohttp-keys HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.get_running_loop().sock_sendall(silent, asked)
            assert not await served(port)
            async with asyncio.timeout(60):
                while not await served(port):
                    await asyncio.sleep(0.1)


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    async with listening() as (_, port), contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        await asyncio.sleep(0.05)
        async with connected(port) as (reader, _writer):
            assert await closed(reader)
        kept[0][1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await kept[0][0].readuntil(b"\r\n\r\n")


async def test_an_early_refusal_is_sealed_too() -> None:
    async with listening() as (bench, port), connected(port) as (reader, writer):
        sealed = bench.peer.seal(document=chat(), nonce=b"short")
        writer.write(request(sealed))
        _head, body = await whole(reader)
        assert b"bad_nonce" in b"".join(sealed.open(body))
