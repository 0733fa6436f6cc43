"""The listener of attested TLS: versions, handshakes and connections that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest

from cloister.worker import server, tls_server
from cloister.worker.settings import KeySettings, WorkerSettings
from support.sealed import until
from support.tls import Pinned, listening

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(pinned: Pinned, *, tls: bool = True) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", pinned.port, ssl=pinned.context() if tls else None
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def served(pinned: Pinned) -> bool:
    """Whether an honest client is answered."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(60), connected(pinned) as (reader, writer):
            writer.write(GET)
            return b" 200 " in await reader.readuntil(b"\r\n")
    return False


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the worker has closed the connection, without a word in clear."""
    async with asyncio.timeout(60):
        with contextlib.suppress(OSError):
            return b"HTTP" not in await reader.read()
    return True


def handshakes(pinned: Pinned, outcome: str) -> float:
    value = pinned.bench.worker.context.metrics.tls_handshakes.labels(outcome=outcome)
    found = next(iter(value.collect())).samples[0].value
    return float(found)


async def test_a_request_in_the_same_flight_as_the_end_of_the_handshake(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned:
        for _ in range(20):
            assert await served(pinned)
        assert handshakes(pinned, "done") == 20


async def test_only_tls_1_3_is_spoken(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned:
        assert await served(pinned)
        older = pinned.context()
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", pinned.port, ssl=older)
        await until(lambda: handshakes(pinned, "failed") == 1)
        assert await served(pinned)


async def test_the_protocol_is_http_1_1_and_nothing_outlives_a_connection(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned:
        context = pinned.context()
        context.set_alpn_protocols(["h2", "http/1.1"])

        def once() -> tuple[str | None, str | None, bool]:
            with (
                socket.create_connection(("127.0.0.1", pinned.port), timeout=60) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as inside,
            ):
                inside.sendall(GET)
                assert b" 200 " in inside.recv(100)  # a ticket would have come before
                session = inside.session
                return (
                    inside.version(),
                    inside.selected_alpn_protocol(),
                    session is not None and session.has_ticket,
                )

        assert await asyncio.to_thread(once) == ("TLSv1.3", "http/1.1", False)


@pytest.mark.parametrize(
    "sent", [GET, b"\x16\x03\x01\x02", b"\x00" * 100, b"\x80\x2e\x01\x00\x02"], ids=repr
)
async def test_what_is_no_tls_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    async with listening(tmp_path) as pinned:
        assert await served(pinned)
        async with connected(pinned, tls=False) as (reader, writer):
            writer.write(sent)
            if writer.can_write_eof():
                writer.write_eof()
            assert await closed(reader)
        await until(lambda: handshakes(pinned, "failed") == 1)
        assert await served(pinned)


async def test_a_handshake_has_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_server, "HANDSHAKE_S", 0.3)
    async with listening(tmp_path) as pinned:
        for start in (b"", b"\x16\x03\x01"):
            async with connected(pinned, tls=False) as (reader, writer):
                writer.write(start)
                assert await closed(reader)
        assert handshakes(pinned, "failed") == 2


async def test_handshakes_are_bounded_and_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_server, "MAX_HANDSHAKES", 3)
    async with listening(tmp_path) as pinned, contextlib.AsyncExitStack() as stack:
        assert await served(pinned)
        idle = [await stack.enter_async_context(connected(pinned, tls=False)) for _ in range(3)]
        await until(lambda: len(pinned.server._handshakes) == 3)
        assert handshakes(pinned, "refused") == 0
        assert await served(pinned)
        assert handshakes(pinned, "refused") == 1
        assert await closed(idle[0][0])
        assert len(pinned.server._handshakes) == 2
        for _ in range(4):
            await stack.enter_async_context(connected(pinned, tls=False))
        await until(lambda: handshakes(pinned, "refused") == 4)
        assert len(pinned.server._handshakes) == 3
        assert await closed(idle[1][0]) and await closed(idle[2][0])
        await stack.aclose()
        await until(lambda: not pinned.server._handshakes)
        assert await served(pinned)


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    async with listening(tmp_path) as pinned, contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(pinned)) for _ in range(3)]
        await until(lambda: len(pinned.server.server_state.connections) == 3)
        assert not await served(pinned)
        kept[0][1].write(GET)
        assert b" 200 " in await kept[0][0].readuntil(b"\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: 1\r\n" % n for n in range(100)),
        b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 400_000,
    ],
    ids=["many", "long"],
)
async def test_heads_are_bounded(tmp_path: Path, head: bytes) -> None:
    async with listening(tmp_path) as pinned, connected(pinned) as (reader, writer):
        writer.write(GET)
        assert b" 200 " in await reader.readuntil(b"\r\n")
        with contextlib.suppress(OSError):
            for at in range(0, len(head), 8192):
                writer.write(head[at : at + 8192])
                await writer.drain()
        async with asyncio.timeout(60):
            with contextlib.suppress(OSError):
                while await reader.read(65536):
                    pass


async def test_a_head_that_drips_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path) as pinned:
        assert await served(pinned)
        monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.3)
        for start in (b"", b"GET / HT"):
            async with connected(pinned) as (reader, writer):
                writer.write(start)
                assert await closed(reader)


async def test_a_stop_waits_for_no_handshake(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(tmp_path) as pinned:
            reader, _ = await stack.enter_async_context(connected(pinned, tls=False))
            await until(lambda: len(pinned.server._handshakes) == 1)
        assert await closed(reader)  # long before a handshake's time is over
        assert not pinned.server._handshakes


async def test_a_new_keyset_shows_a_new_certificate_that_old_pins_accept(tmp_path: Path) -> None:
    keys = KeySettings(life_s=100, overlap_s=50)
    settings = WorkerSettings(attested_tls=True, keys=keys)
    async with listening(tmp_path, settings=settings) as pinned:
        ring = pinned.bench.worker.context.keys
        first = ring.current
        shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", pinned.port))
        assert first.certificates is not None
        assert shown.encode() == first.certificates.leaf
        async with connected(pinned) as (reader, writer):
            pinned.bench.clocks.steady_offset += 101
            await until(lambda: pinned.server._shown == ring.current.digest != first.digest)
            second = ring.current
            assert second.certificates is not None
            assert second.certificates.pin != first.certificates.pin
            assert second.keyset.tls_public_keys == first.keyset.tls_public_keys != ()
            shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", pinned.port))
            assert shown.encode() == second.certificates.leaf
            assert await served(pinned)  # with the old pin
            writer.write(GET)
            assert b" 200 " in await reader.readuntil(b"\r\n")  # on the old connection
            pinned.pin.write_bytes(second.certificates.pin)
            assert await served(pinned)


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_request_in_the_same_flight_as_the_end_of_the_handshake,
        test_only_tls_1_3_is_spoken,
        test_a_new_keyset_shows_a_new_certificate_that_old_pins_accept,
        test_a_stop_waits_for_no_handshake,
    ],
)
def test_the_same_on_the_loop_that_workers_run_on(
    tmp_path: Path, scenario: Callable[[Path], Coroutine[None, None, None]]
) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(tmp_path))
