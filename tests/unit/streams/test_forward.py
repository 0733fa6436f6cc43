"""The forwarder: bytes both ways, back-pressure, and every bound."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cloister.errors import ConfigurationError, UnsupportedError
from cloister.streams.address import Address, TcpAddress, UnixAddress, VsockAddress
from cloister.streams.ends import dialler_to, listener_on
from cloister.streams.forward import Forwarder, ForwardLimits, join
from cloister.streams.route import Route
from cloister.streams.sockets import SocketListener
from cloister.streams.stream import Listener, Stream
from cloister.streams.tasks import end
from support.links import CONNECT_S, everything

QUICK = ForwardLimits(pause_s=0.01)
Serve = Callable[[Stream], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(address: Address, serve: Serve) -> AsyncIterator[Listener]:
    """Serve every stream that comes to `address`."""
    listener = await listener_on(address)

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(_served(serve, await listener.accept()))

    accepting = asyncio.create_task(accept())
    try:
        yield listener
    finally:
        await end([accepting])
        await listener.aclose()


async def _served(serve: Serve, stream: Stream) -> None:
    try:
        with contextlib.suppress(OSError):
            await serve(stream)
    finally:
        stream.close()


@contextlib.asynccontextmanager
async def forwarding(
    listen: Address,
    target: Address,
    limits: ForwardLimits = QUICK,
    told: list[str | None] | None = None,
) -> AsyncIterator[None]:
    listener = await listener_on(listen)
    dialler = dialler_to(target, connect_s=CONNECT_S)
    heard = [] if told is None else told
    forwarder = Forwarder(listener, dialler, limits=limits, on_reach=heard.append)
    running = asyncio.create_task(forwarder.run())
    try:
        yield
    finally:
        await end([running])
        await listener.aclose()
        await dialler.aclose()


async def echo(stream: Stream) -> None:
    await stream.send(await everything(stream))
    await stream.send_end()


@pytest.fixture
def front(tmp_path: Path) -> UnixAddress:
    return UnixAddress(path=str(tmp_path / "front"))


@pytest.fixture
def back(tmp_path: Path) -> UnixAddress:
    return UnixAddress(path=str(tmp_path / "back"))


async def asked(address: Address, data: bytes) -> bytes:
    stream = await dialler_to(address, connect_s=CONNECT_S).dial()
    try:
        sending = asyncio.create_task(stream.send(data))
        await sending
        await stream.send_end()
        return await everything(stream)
    finally:
        stream.close()


async def test_everything_is_carried_both_ways(front: UnixAddress, back: UnixAddress) -> None:
    data = os.urandom(1_000_000)
    async with serving(back, echo), forwarding(front, back):
        assert await asked(front, data) == data


async def test_tcp_is_carried_as_well(front: UnixAddress) -> None:
    async with serving(TcpAddress(host="127.0.0.1", port=0), echo) as listener:
        assert isinstance(listener, SocketListener)
        async with forwarding(front, listener.address):
            assert await asked(front, b"over TCP") == b"over TCP"


async def test_who_reads_slowly_slows_down_who_sends(front: UnixAddress, back: UnixAddress) -> None:
    """Memory holds a chunk in each direction, whatever is sent."""
    goes_on = asyncio.Event()

    async def slow(stream: Stream) -> None:
        await goes_on.wait()
        await echo(stream)

    data = os.urandom(8_000_000)
    async with serving(back, slow), forwarding(front, back):
        stream = await dialler_to(front, connect_s=CONNECT_S).dial()
        sending = asyncio.create_task(stream.send(data))
        await asyncio.wait({sending}, timeout=0.3)
        assert not sending.done()
        goes_on.set()
        reading = asyncio.create_task(everything(stream))
        await sending
        await stream.send_end()
        assert await reading == data
        stream.close()


async def test_above_the_limit_the_next_stream_waits(front: UnixAddress, back: UnixAddress) -> None:
    async with serving(back, echo), forwarding(front, back, ForwardLimits(streams=1)):
        first = await dialler_to(front, connect_s=CONNECT_S).dial()
        await first.send(b"first")
        second = asyncio.create_task(asked(front, b"second"))
        await asyncio.wait({second}, timeout=0.2)
        assert not second.done()
        await first.send_end()
        assert await everything(first) == b"first"
        first.close()
        assert await second == b"second"


async def test_a_stream_on_which_nothing_moves_is_ended(
    front: UnixAddress, back: UnixAddress
) -> None:
    async def silent(stream: Stream) -> None:
        await everything(stream)

    async with serving(back, silent), forwarding(front, back, ForwardLimits(idle_s=0.1)):
        stream = await dialler_to(front, connect_s=CONNECT_S).dial()
        assert await everything(stream) == b""
        stream.close()


async def test_a_target_that_is_away_ends_the_stream_and_is_told_once(
    front: UnixAddress, back: UnixAddress
) -> None:
    told: list[str | None] = []
    async with forwarding(front, back, told=told):
        assert await asked_unreachable(front) == b""
        assert await asked_unreachable(front) == b""
        async with serving(back, echo):
            assert await asked(front, b"there") == b"there"
    assert told == ["No such file or directory", None]


async def asked_unreachable(address: Address) -> bytes:
    stream = await dialler_to(address, connect_s=CONNECT_S).dial()
    try:
        return await everything(stream)
    except ConnectionError:
        return b""
    finally:
        stream.close()


async def test_a_target_that_this_machine_has_no_socket_for_is_told(
    front: UnixAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    told: list[str | None] = []
    async with forwarding(front, VsockAddress(cid=3, port=8000), told=told):
        assert await asked_unreachable(front) == b""
    assert len(told) == 1
    assert "no vsock" in str(told[0])


class Flood:
    """A stream with always more to bring, and room for whatever comes."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    async def receive(self) -> bytes:
        self.left = max(0, self.left - 1)
        return b"x" if self.left else b""

    async def send(self, data: bytes) -> None:
        assert data

    async def send_end(self) -> None:
        pass

    def close(self) -> None:
        pass


async def test_a_flood_starves_nobody() -> None:
    one = Flood(10_000)
    joining = asyncio.create_task(join(one, Flood(1), idle_s=900))
    while one.left == 10_000:
        await asyncio.sleep(0)
    assert one.left > 9_000
    await joining
    assert one.left == 0


async def test_a_reset_at_one_end_is_an_end_at_the_other(
    front: UnixAddress, back: UnixAddress
) -> None:
    async def leaves(stream: Stream) -> None:
        await stream.receive()

    async with serving(back, leaves), forwarding(front, back):
        stream = await dialler_to(front, connect_s=CONNECT_S).dial()
        await stream.send(b"hello")
        assert await asyncio.wait_for(asked_end(stream), CONNECT_S) == b""


async def asked_end(stream: Stream) -> bytes:
    try:
        return await everything(stream)
    except ConnectionError:
        return b""
    finally:
        stream.close()


async def test_a_unix_socket_is_for_one_user_and_is_removed(front: UnixAddress) -> None:
    listener = await listener_on(front)
    assert stat.S_IMODE(Path(front.path).stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError) as caught:
        await listener_on(front)
    assert caught.value.code == "configuration.listen"
    await listener.aclose()
    assert not Path(front.path).exists()


async def test_a_dead_socket_is_replaced_and_a_file_is_not(front: UnixAddress) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(front.path)
    listener = await listener_on(front)
    await listener.aclose()
    Path(front.path).write_text("somebody's")
    with pytest.raises(ConfigurationError):
        await listener_on(front)
    assert Path(front.path).read_text() == "somebody's"


async def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    absent = UnixAddress(path=str(tmp_path / "absent" / "socket"))
    with pytest.raises(ConfigurationError, match="No such file"):
        await listener_on(absent)


def test_limits_that_carry_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ForwardLimits(streams=0)


async def test_vsock_carries_streams_where_the_kernel_has_its_loopback(front: UnixAddress) -> None:
    local = VsockAddress(cid=1, port=52_000 + os.getpid() % 1000)
    try:
        listening = await listener_on(local)
    except (ConfigurationError, UnsupportedError) as error:
        pytest.skip(f"no vsock loopback here (vsock_loopback): {error}")
    await listening.aclose()
    async with serving(local, echo), forwarding(front, local):
        assert await asked(front, b"over vsock") == b"over vsock"


async def test_http_libraries_get_a_socket_for_any_address(back: UnixAddress) -> None:
    async with serving(TcpAddress(host="127.0.0.1", port=0), echo) as listener:
        assert isinstance(listener, SocketListener)
        with Route(listener.address) as route:
            path = Path(route.socket_path)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert await asked(UnixAddress(path=route.socket_path), b"data") == b"data"
        assert not path.parent.exists()
    with Route(back) as direct:
        assert direct.socket_path == back.path


def test_a_way_that_nobody_has_any_more_is_closed(tmp_path: Path) -> None:
    route = Route(TcpAddress(host="127.0.0.1", port=1))
    folder = Path(route.socket_path).parent
    assert folder.exists()
    del route
    gc.collect()
    assert not folder.exists()
