"""The parent's end of an emulated vsock, with a guest's driver of a few lines at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.vhost_vsock import (
    BUFFER_BYTES,
    DESCRIPTOR,
    DESCRIPTOR_WRITE,
    HEADER,
    MESSAGE,
    RX,
    SHUT_RECEIVE,
    SHUT_SEND,
    STREAM,
    TX,
    Op,
    Request,
    run,
)

CID, PARENT, PORT = 16, 3, 8440
GUEST, USER, SIZE = 0x1000_0000, 0x7F00_0000_0000, 1 << 20
RING = 16
BUFFER = 4096


class Driver:
    """Both rings of a guest in one piece of memory, and QEMU's messages about them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = os.memfd_create("guest")
        os.truncate(self._file, SIZE)
        self._kicks = {index: os.eventfd(0) for index in (RX, TX)}
        self._calls = {index: os.eventfd(0, os.EFD_NONBLOCK) for index in (RX, TX)}
        self._seen = {RX: 0, TX: 0}
        self._available = {RX: 0, TX: 0}

    def close(self) -> None:
        for descriptor in (self._file, *self._kicks.values(), *self._calls.values()):
            os.close(descriptor)
        self._connection.close()

    def tell(self, request: int, payload: bytes, *descriptors: int) -> None:
        head = MESSAGE.pack(request, 1, len(payload))
        socket.send_fds(self._connection, [head + payload], list(descriptors))

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.tell(request, payload)
        head = self._connection.recv(MESSAGE.size, socket.MSG_WAITALL)
        answered, flags, size = MESSAGE.unpack(head)
        assert (answered, flags) == (request, 5)
        return self._connection.recv(size, socket.MSG_WAITALL)

    def begin(self) -> None:
        table = struct.pack("<IIQQQQ", 1, 0, GUEST, SIZE, USER, 0)
        self.tell(Request.SET_MEM_TABLE, table, self._file)
        for index in (RX, TX):
            at = USER + self._ring(index)
            self.tell(Request.SET_VRING_NUM, struct.pack("<II", index, RING))
            self.tell(Request.SET_VRING_BASE, struct.pack("<II", index, 0))
            places = struct.pack("<IIQQQQ", index, 0, at, at + 0x2000, at + 0x1000, 0)
            self.tell(Request.SET_VRING_ADDR, places)
            number = struct.pack("<Q", index)
            self.tell(Request.SET_VRING_CALL, number, self._calls[index])
            self.tell(Request.SET_VRING_KICK, number, self._kicks[index])
        for slot in range(RING):
            self._offer(RX, slot)

    @staticmethod
    def _ring(index: int) -> int:
        return index * 0x10000

    @staticmethod
    def _buffer(index: int, slot: int) -> int:
        return 0x40000 + (index * RING + slot) * BUFFER

    def _offer(self, index: int, slot: int, size: int = BUFFER) -> None:
        flags = DESCRIPTOR_WRITE if index == RX else 0
        at = self._ring(index)
        descriptor = DESCRIPTOR.pack(GUEST + self._buffer(index, slot), size, flags, 0)
        os.pwrite(self._file, descriptor, at + slot * DESCRIPTOR.size)
        count = self._available[index]
        os.pwrite(self._file, struct.pack("<H", slot), at + 0x1004 + 2 * (count % RING))
        self._available[index] = (count + 1) & 0xFFFF
        os.pwrite(self._file, struct.pack("<H", self._available[index]), at + 0x1002)
        os.eventfd_write(self._kicks[index], 1)

    def send(
        self,
        op: int,
        *,
        port: int,
        peer: int,
        cid: int = PARENT,
        data: bytes = b"",
        flags: int = 0,
        allowed: int = BUFFER_BYTES,
        taken: int = 0,
    ) -> None:
        head = HEADER.pack(*(CID, cid, port, peer, len(data), STREAM, op, flags), allowed, taken)
        slot = self._available[TX] % RING
        os.pwrite(self._file, head + data, self._buffer(TX, slot))
        self._offer(TX, slot, len(head) + len(data))

    async def receive(self) -> tuple[int, int, int, int, bytes]:
        """Operation, both ports, flags and data of the next packet."""
        at = self._ring(RX) + 0x2000
        async with asyncio.timeout(30):
            while True:
                (index,) = struct.unpack("<H", os.pread(self._file, 2, at + 2))
                if index != self._seen[RX]:
                    break
                await asyncio.sleep(0.001)
        entry = os.pread(self._file, 8, at + 4 + 8 * (self._seen[RX] % RING))
        slot, size = struct.unpack("<II", entry)
        self._seen[RX] = (self._seen[RX] + 1) & 0xFFFF
        packet = os.pread(self._file, size, self._buffer(RX, slot))
        self._offer(RX, slot)
        source, target, port, peer, length, kind, op, flags, allowed, _ = HEADER.unpack_from(packet)
        assert (source, target, kind, allowed) == (PARENT, CID, STREAM, BUFFER_BYTES)
        data = packet[HEADER.size :]
        assert len(data) == length
        return op, port, peer, flags, data


@pytest.fixture
async def driver() -> AsyncIterator[tuple[Driver, Path]]:
    # Not pytest's folder: the path of a socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vsock-") as name:
        folder = Path(name)
        serving = asyncio.create_task(run(folder, CID, [PORT]))
        while not (folder / "vhost.sock").exists():
            await asyncio.sleep(0.001)
        connection = socket.socket(socket.AF_UNIX)
        await asyncio.to_thread(connection.connect, str(folder / "vhost.sock"))
        made = Driver(connection)
        try:
            yield made, folder
        finally:
            made.close()
            async with asyncio.timeout(30):
                await serving


async def test_what_qemu_is_told(driver: tuple[Driver, Path]) -> None:
    made, _ = driver
    features = await asyncio.to_thread(made.ask, Request.GET_FEATURES)
    assert int.from_bytes(features, "little") == 1 << 32 | 1 << 30
    asked = struct.pack("<III", 0, 8, 0) + bytes(8)
    config = await asyncio.to_thread(made.ask, Request.GET_CONFIG, asked)
    assert config == asked[:12] + struct.pack("<Q", CID)


async def test_a_stream_from_the_host(driver: tuple[Driver, Path]) -> None:
    """Opened, both ways, half closed by each end, and ended."""
    made, folder = driver
    made.begin()
    reader, writer = await asyncio.open_unix_connection(str(folder / f"guest-{PORT}.sock"))
    op, port, peer, _, _ = await made.receive()
    assert (op, peer) == (Op.REQUEST, PORT)
    made.send(Op.RESPONSE, port=PORT, peer=port)
    writer.write(b"a question")
    assert await made.receive() == (Op.RW, port, PORT, 0, b"a question")
    made.send(Op.RW, port=PORT, peer=port, data=b"an answer")
    assert await reader.readexactly(9) == b"an answer"
    writer.write_eof()
    assert await made.receive() == (Op.SHUTDOWN, port, PORT, SHUT_SEND, b"")
    made.send(Op.SHUTDOWN, port=PORT, peer=port, flags=SHUT_SEND | SHUT_RECEIVE)
    assert await reader.read() == b""
    assert (await made.receive())[0] == Op.RST
    writer.close()


async def test_no_more_is_sent_than_the_guest_takes(driver: tuple[Driver, Path]) -> None:
    made, folder = driver
    made.begin()
    _, writer = await asyncio.open_unix_connection(str(folder / f"guest-{PORT}.sock"))
    _, port, _, _, _ = await made.receive()
    made.send(Op.RESPONSE, port=PORT, peer=port, allowed=10)
    writer.write(b"0123456789abcdef")
    assert (await made.receive())[4] == b"0123456789"
    made.send(Op.CREDIT_REQUEST, port=PORT, peer=port, allowed=10)
    assert (await made.receive())[0] == Op.CREDIT_UPDATE, "and nothing before it"
    made.send(Op.CREDIT_UPDATE, port=PORT, peer=port, allowed=10, taken=10)
    assert (await made.receive())[4] == b"abcdef"
    made.send(Op.RST, port=PORT, peer=port)
    writer.close()


async def test_more_than_the_ring_holds_arrives_in_order(driver: tuple[Driver, Path]) -> None:
    made, folder = driver
    made.begin()
    _, writer = await asyncio.open_unix_connection(str(folder / f"guest-{PORT}.sock"))
    _, port, _, _, _ = await made.receive()
    made.send(Op.RESPONSE, port=PORT, peer=port)
    sent = os.urandom(BUFFER_BYTES // 2)
    writer.write(sent)
    received = b""
    while len(received) < len(sent):
        op, _, _, _, data = await made.receive()
        assert op == Op.RW
        received += data
    assert received == sent
    made.send(Op.RST, port=PORT, peer=port)
    writer.close()


async def test_what_the_guest_opens(driver: tuple[Driver, Path]) -> None:
    """To its parent, where somebody listens; else it is refused."""
    made, folder = driver
    made.begin()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait(await reader.readexactly(1))
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(heard, str(folder / "parent-9000.sock"))
    made.send(Op.REQUEST, port=1024, peer=9000, cid=PARENT)
    assert (await made.receive())[:3] == (Op.RESPONSE, 9000, 1024)
    made.send(Op.RW, port=1024, peer=9000, data=b"\xb7")
    assert await arrived.get() == b"\xb7"
    made.send(Op.RST, port=1024, peer=9000)
    made.send(Op.REQUEST, port=1025, peer=9001, cid=PARENT)
    assert (await made.receive())[:3] == (Op.RST, 9001, 1025)
    server.close()


async def test_a_stream_that_nobody_knows_is_reset(driver: tuple[Driver, Path]) -> None:
    made, _ = driver
    made.begin()
    made.send(Op.RW, port=1, peer=2, data=b"?")
    assert (await made.receive())[:3] == (Op.RST, 2, 1)
