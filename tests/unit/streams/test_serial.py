"""Streams over one port, with everything that may happen to either of its ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from cloister.streams.address import VirtioAddress
from cloister.streams.device import AbsentError, Device
from cloister.streams.ends import dialler_to, listener_on
from cloister.streams.frames import (
    MAX_STREAMS,
    WINDOW_BYTES,
    Frame,
    FrameReader,
    Kind,
    encode_credit,
    encode_frame,
    encode_greeting,
)
from cloister.streams.multiplex import _MAX_RESETS
from cloister.streams.serial import PortDialler, PortListener
from cloister.streams.stream import Stream
from support.links import CONNECT_S, Port, ends, everything, pair, terminal

SESSION = bytes(range(16))


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


async def test_many_streams_carry_both_ways_and_end_one_by_one(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        sent = {index: os.urandom(40_000 + 1000 * index) for index in range(20)}

        async def serve() -> None:
            stream = await listener.accept()
            data = await everything(stream)
            await stream.send(data[::-1])
            await stream.send_end()

        async def ask(index: int) -> bytes:
            stream = await dialler.dial()
            await stream.send(sent[index])
            await stream.send_end()
            return await everything(stream)

        serving = [asyncio.create_task(serve()) for _ in sent]
        answers = await asyncio.gather(*(ask(index) for index in sent))
        await asyncio.gather(*serving)
        assert answers == [data[::-1] for data in sent.values()]


async def test_a_direction_goes_on_after_the_other_has_ended(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        there, here = await pair(listener, dialler)
        await here.send_end()
        assert await there.receive() == b""
        await there.send(b"late")
        assert await here.receive() == b"late"
        with pytest.raises(ConnectionError):
            await here.send(b"x")


async def test_who_does_not_read_stops_who_sends_and_nobody_else(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        slow_there, slow_here = await pair(listener, dialler)
        there, here = await pair(listener, dialler)
        data = os.urandom(4 * WINDOW_BYTES)
        sending = asyncio.create_task(slow_here.send(data))
        for _ in range(20):  # the other stream is served all the while
            await here.send(b"ping")
            assert await there.receive() == b"ping"
        assert not sending.done()
        received = b""
        while len(received) < len(data):
            received += await slow_there.receive()
        await sending
        assert received == data


async def greeted(port: Port, *frames: bytes) -> PortListener:
    """A listener, whose peer has begun a session and sent `frames`."""
    listener = PortListener(port.open_guest)
    await listener.start()
    port.host.setblocking(False)
    greeting = encode_greeting(Kind.HELLO, SESSION)
    await asyncio.get_running_loop().sock_sendall(port.host, greeting + b"".join(frames))
    return listener


async def heard(
    port: Port, *, until: Callable[[Frame], bool], end: socket.socket | None = None
) -> list[Frame]:
    """What the listener sends (or who has the other end), up to one frame."""
    reader = FrameReader()
    frames: list[Frame] = []
    while not any(until(frame) for frame in frames):
        data = await asyncio.get_running_loop().sock_recv(end or port.host, 65536)
        assert data, "the port was closed"
        events = reader.feed(data)
        frames += [event for event in events if isinstance(event, Frame)]
    return frames


async def test_what_was_sent_before_both_ends_arrives_over_a_slow_link(port: Port) -> None:
    """As with a socket: closed after the end of both directions, it still delivers."""
    port.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ended = encode_frame(Kind.OPEN, 1) + encode_frame(Kind.END, 1)
    listener = await greeted(port, ended)
    try:
        stream = await listener.accept()
        assert await stream.receive() == b""
        data = os.urandom(100_000)
        await stream.send(data)
        await stream.send_end()
        with pytest.raises(ConnectionError):
            await stream.send(b"after the end")
        stream.close()  # while most of it waits here, since nobody reads at the other end
        frames = await heard(port, until=lambda frame: frame.kind in {Kind.END, Kind.RESET})
        assert b"".join(frame.payload for frame in frames if frame.kind is Kind.DATA) == data
        assert frames[-1].kind is Kind.END
    finally:
        await listener.aclose()


@pytest.mark.parametrize("more", [0, 1])
async def test_a_peer_that_takes_nothing_earns_so_many_resets_and_no_more(
    port: Port, more: int
) -> None:
    port.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # less than one greeting
    opens = [encode_frame(Kind.OPEN, 1 + n) for n in range(MAX_STREAMS + _MAX_RESETS + more)]
    listener = await greeted(port, *opens, encode_frame(Kind.DATA, 1, b"x"))
    try:
        stream = await listener.accept()
        if more:
            with pytest.raises(ConnectionResetError):
                await stream.receive()
        else:
            assert await stream.receive() == b"x"
    finally:
        await listener.aclose()


async def test_no_more_streams_are_taken_than_are_carried_at_a_time(port: Port) -> None:
    opens = [encode_frame(Kind.OPEN, 1 + number) for number in range(MAX_STREAMS)]
    listener = await greeted(port, *opens)
    loop = asyncio.get_running_loop()
    try:
        taken = [await listener.accept() for _ in opens]
        more = encode_frame(Kind.OPEN, MAX_STREAMS + 1)
        await loop.sock_sendall(port.host, more + encode_frame(Kind.DATA, 1, b"x"))
        assert await taken[0].receive() == b"x"
        frames = await heard(port, until=lambda frame: frame.kind is Kind.RESET)
        assert frames[-1].stream == MAX_STREAMS + 1
    finally:
        await listener.aclose()


async def test_of_what_was_reset_nothing_is_left_and_of_what_had_ended_everything(
    port: Port,
) -> None:
    frames = [encode_frame(Kind.OPEN, number) for number in (1, 2, 3)]
    frames += [encode_frame(Kind.DATA, number, b"some") for number in (1, 2)]
    frames += [encode_frame(Kind.END, 2), *(encode_frame(Kind.RESET, n) for n in (1, 2))]
    listener = await greeted(port, *frames, encode_frame(Kind.DATA, 3, b"last"))
    try:
        cut, whole, other = [await listener.accept() for _ in range(3)]
        assert await other.receive() == b"last"
        with pytest.raises(ConnectionResetError):
            await cut.receive()
        assert await whole.receive() == b"some"
        assert await whole.receive() == b""
    finally:
        await listener.aclose()


async def test_nothing_of_a_stream_is_sent_after_its_reset(port: Port) -> None:
    port.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # less than one greeting
    listener = await greeted(port, *(encode_frame(Kind.OPEN, number) for number in (1, 2)))
    try:
        closed, other = [await listener.accept() for _ in range(2)]
        await closed.send(bytes(20_000))
        await other.send(b"x")
        closed.close()
        frames = await heard(port, until=lambda frame: frame.kind is Kind.DATA)
        assert [(frame.kind, frame.stream) for frame in frames if frame.stream] == [
            (Kind.RESET, 1),
            (Kind.DATA, 2),
        ]
    finally:
        await listener.aclose()


async def test_all_who_wait_to_send_are_told_when_the_session_ends(port: Port) -> None:
    port.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # less than one greeting
    numbers = range(1, 6)
    listener = await greeted(port, *(encode_frame(Kind.OPEN, number) for number in numbers))
    try:
        streams = [await listener.accept() for _ in numbers]
        for stream in streams[:2]:  # 16 frames, as many as wait for the link
            await stream.send(bytes(WINDOW_BYTES))
        sending = {asyncio.create_task(stream.send(b"x")) for stream in streams[2:]}
        while not all(stream._sending.locked() for stream in streams[2:]):
            await asyncio.sleep(0)
        again = encode_greeting(Kind.HELLO, bytes(16))
        await asyncio.get_running_loop().sock_sendall(port.host, again)
        done, _ = await asyncio.wait(sending, timeout=CONNECT_S)
        assert done == sending
        assert {type(task.exception()) for task in done} == {ConnectionResetError}
    finally:
        await listener.aclose()


async def test_a_listener_opens_no_streams(port: Port) -> None:
    dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
    loop = asyncio.get_running_loop()
    port.guest.setblocking(False)
    dialling = asyncio.create_task(dialler.dial())
    try:
        hello = await heard(port, until=lambda frame: frame.kind is Kind.HELLO, end=port.guest)
        welcome = encode_greeting(Kind.WELCOME, hello[-1].session)
        await loop.sock_sendall(port.guest, welcome + encode_frame(Kind.DATA, 7, b"nobody's"))
        stream = await dialling
        await loop.sock_sendall(port.guest, encode_frame(Kind.DATA, 1, b"good"))
        assert await stream.receive() == b"good"
        await loop.sock_sendall(port.guest, encode_frame(Kind.OPEN, 7))
        with pytest.raises(ConnectionResetError):
            await stream.receive()

        def is_another(frame: Frame) -> bool:
            return frame.kind is Kind.HELLO and frame.session != hello[-1].session

        await heard(port, until=is_another, end=port.guest)
    finally:
        dialling.cancel()
        await dialler.aclose()


class Flood:
    """A port with always more to read."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        if self.reads > 1000:
            raise ConnectionResetError
        return bytes(100)

    async def write(self, data: bytes) -> None:
        assert data

    def close(self) -> None:
        pass


async def test_a_flooded_port_starves_nobody() -> None:
    flood = Flood()

    async def opened() -> Device:
        return cast("Device", flood)

    listener = PortListener(opened)
    await listener.start()
    while not flood.reads:
        await asyncio.sleep(0)
    assert flood.reads < 100
    await listener.aclose()


async def test_closing_a_stream_resets_it_at_the_other_end(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        there, here = await pair(listener, dialler)
        await here.send(b"some")
        assert await there.receive() == b"some"
        here.close()
        with pytest.raises(ConnectionResetError):
            await there.receive()
        with pytest.raises(ConnectionResetError):
            await there.send(b"x")
        with pytest.raises(ConnectionResetError):
            await here.receive()


async def test_a_sender_that_waits_for_credit_is_told_of_a_reset(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        there, here = await pair(listener, dialler)
        sending = asyncio.create_task(here.send(bytes(2 * WINDOW_BYTES)))
        assert await there.receive()
        there.close()
        with pytest.raises(ConnectionResetError):
            await sending


async def test_a_link_carries_so_many_streams_and_then_again_as_they_end(port: Port) -> None:
    async with ends(port) as (listener, dialler):
        opened = [await dialler.dial() for _ in range(MAX_STREAMS)]
        with pytest.raises(ConnectionError, match="already"):
            await dialler.dial()
        accepted = [await listener.accept() for _ in range(MAX_STREAMS)]
        opened[0].close()
        with pytest.raises(ConnectionResetError):
            await accepted[0].receive()
        there, here = await pair(listener, dialler)
        await here.send(b"one more")
        assert await there.receive() == b"one more"


async def test_a_stream_too_many_is_reset_whatever_the_dialler_counts(port: Port) -> None:
    listener = PortListener(port.open_guest)
    await listener.start()
    loop = asyncio.get_running_loop()
    port.host.setblocking(False)
    try:
        opens = b"".join(encode_frame(Kind.OPEN, 1 + index) for index in range(MAX_STREAMS + 1))
        await loop.sock_sendall(port.host, encode_greeting(Kind.HELLO, SESSION) + opens)
        reader = FrameReader()
        frames: list[object] = []
        while not frames or frames[-1] != Frame(
            kind=Kind.RESET, stream=MAX_STREAMS + 1, payload=b""
        ):
            frames += reader.feed(await loop.sock_recv(port.host, 65536))
        for _ in range(MAX_STREAMS):
            await listener.accept()
    finally:
        await listener.aclose()


@pytest.mark.parametrize("cut", [3, 8, 9000])
async def test_a_new_dialler_begins_again_in_the_middle_of_a_frame(port: Port, cut: int) -> None:
    """The host's forwarder was killed while it wrote; the port stays, and what it wrote."""
    listener = PortListener(port.open_guest)
    await listener.start()
    try:
        hello = encode_greeting(Kind.HELLO, SESSION) + encode_frame(Kind.OPEN, 1)
        port.host.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(port.host, hello + encode_frame(Kind.DATA, 1, b"x" * 16384)[:cut])
        old = await listener.accept()
        dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
        there, here = await pair(listener, dialler)
        await here.send(b"new")
        assert await there.receive() == b"new"
        with pytest.raises(ConnectionResetError):
            await everything(old)
        await dialler.aclose()
    finally:
        await listener.aclose()


async def test_a_new_listener_makes_the_dialler_begin_again(port: Port) -> None:
    """The worker in the guest was restarted."""
    first = PortListener(port.open_guest)
    await first.start()
    dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
    _, here = await pair(first, dialler)
    await first.aclose()
    second = PortListener(port.open_guest)
    await second.start()
    try:
        with pytest.raises(ConnectionResetError):
            await here.receive()
        there, here = await pair(second, dialler)
        await there.send(b"again")
        assert await here.receive() == b"again"
    finally:
        await dialler.aclose()
        await second.aclose()


async def test_a_welcome_of_another_session_is_not_believed(port: Port) -> None:
    dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
    loop = asyncio.get_running_loop()
    port.guest.setblocking(False)
    dialling = asyncio.create_task(dialler.dial())
    try:
        reader = FrameReader()
        hello: list[Frame] = []
        while not hello:
            events = reader.feed(await loop.sock_recv(port.guest, 65536))
            hello = [event for event in events if isinstance(event, Frame)]
        assert hello[0].kind is Kind.HELLO
        # What was left in the port for a dialler before this one, data among it.
        await loop.sock_sendall(port.guest, encode_greeting(Kind.WELCOME, SESSION))
        await loop.sock_sendall(port.guest, encode_frame(Kind.DATA, 1, b"old"))
        done, _ = await asyncio.wait({dialling}, timeout=0.2)
        assert not done
        await loop.sock_sendall(port.guest, encode_greeting(Kind.WELCOME, hello[0].session))
        stream = await dialling
        await loop.sock_sendall(port.guest, encode_frame(Kind.DATA, 1, b"new"))
        assert await stream.receive() == b"new"
    finally:
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        await dialler.aclose()


VIOLATIONS = {
    "more data than credit": b"".join(
        encode_frame(Kind.DATA, 1, bytes(16384)) for _ in range(WINDOW_BYTES // 16384)
    )
    + encode_frame(Kind.DATA, 1, b"x"),
    "more credit than there is": encode_credit(1, 1),
    "a stream opened twice": encode_frame(Kind.OPEN, 1),
    "data after the end": encode_frame(Kind.END, 1) + encode_frame(Kind.DATA, 1, b"x"),
    "two ends": encode_frame(Kind.END, 1) * 2,
    "no frame": b"\xff" * 8,
}


@pytest.mark.parametrize("wrong", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_peer_that_breaks_a_rule_loses_its_session(port: Port, wrong: bytes) -> None:
    listener = PortListener(port.open_guest)
    await listener.start()
    loop = asyncio.get_running_loop()
    port.host.setblocking(False)
    try:
        greeting = encode_greeting(Kind.HELLO, SESSION) + encode_frame(Kind.OPEN, 1)
        good = encode_frame(Kind.DATA, 1, b"good")
        await loop.sock_sendall(port.host, greeting + good)
        stream = await listener.accept()
        assert await stream.receive() == b"good"
        await loop.sock_sendall(port.host, wrong)
        reader = FrameReader()
        kinds: list[Kind] = []
        while kinds[-1:] != [Kind.LOST] or Kind.WELCOME not in kinds:
            for event in reader.feed(await loop.sock_recv(port.host, 65536)):
                assert isinstance(event, Frame)
                kinds.append(event.kind)
        with pytest.raises(ConnectionResetError):
            await stream.send(b"x")
    finally:
        await listener.aclose()


async def test_streams_opened_and_reset_in_a_flood_are_bounded(port: Port) -> None:
    listener = PortListener(port.open_guest)
    await listener.start()
    loop = asyncio.get_running_loop()
    port.host.setblocking(False)
    try:
        await loop.sock_sendall(port.host, encode_greeting(Kind.HELLO, SESSION))
        flood = b"".join(
            encode_frame(Kind.OPEN, number) + encode_frame(Kind.RESET, number)
            for number in range(1, 3000)
        )
        reading = asyncio.create_task(_drain(port))
        await loop.sock_sendall(port.host, flood + encode_greeting(Kind.HELLO, bytes(16)))
        await loop.sock_sendall(port.host, encode_frame(Kind.OPEN, 1))
        for _ in range(MAX_STREAMS):
            await listener.accept()
        assert listener._accepted.qsize() <= 1
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    finally:
        await listener.aclose()


async def _drain(port: Port) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(port.host, 65536):
        pass


async def test_a_dialler_gives_up_when_nobody_answers(port: Port) -> None:
    dialler = PortDialler(port.open_host, connect_s=0.05, random=os.urandom)
    with pytest.raises(TimeoutError):
        await dialler.dial()
    await dialler.aclose()


async def test_a_dialler_is_told_when_the_port_ends(port: Port) -> None:
    dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
    dialling = asyncio.create_task(dialler.dial())
    await asyncio.sleep(0)
    port.guest.close()
    with pytest.raises(ConnectionError):
        await dialling
    await dialler.aclose()


async def test_a_character_device_carries_streams() -> None:
    """A pseudo-terminal stands for the guest's port; its other end is the host."""
    with terminal() as (master, path):
        listener = await listener_on(VirtioAddress(path=str(path)))

        async def open_host() -> Device:
            return Device(os.dup(master), keeps_open=True)

        dialler = PortDialler(open_host, connect_s=CONNECT_S, random=os.urandom)
        try:
            stream = await dialler.dial()
            there = await listener.accept()
            data = os.urandom(300_000)
            sending = asyncio.create_task(_send_all(stream, data))
            assert await everything(there) == data
            await sending
        finally:
            await dialler.aclose()
            await listener.aclose()


async def _send_all(stream: Stream, data: bytes) -> None:
    await stream.send(data)
    await stream.send_end()


async def test_the_end_of_a_character_device_is_only_somebodys_absence() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    absent = Device(reading, keeps_open=True)
    with pytest.raises(AbsentError):
        await absent.read()
    absent.close()


async def test_the_socket_at_the_hosts_end_is_dialled_by_the_same_address(
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError, match="No such file"):
        await dialler_to(VirtioAddress(path=f"{tmp_path}/absent"), connect_s=1).dial()
