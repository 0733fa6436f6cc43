"""The parent's end of an emulated enclave's vsock: a backend for QEMU's ``vhost-user-vsock``.

A host needs no vsock of its own for it, nor any right: each port is a unix socket in one folder.
``guest-PORT.sock`` leads to that port of the guest; what the guest opens to its parent (context id
3, or 2) leads to ``parent-PORT.sock``, and is refused where nobody listens there.

Sources: QEMU ``docs/interop/vhost-user.rst`` (little-endian, messages over a unix socket, memory as
file descriptors); OASIS "Virtual I/O Device (VIRTIO) Version 1.2", sections 2.7 (split virtqueues)
and 5.10 (socket device). Only what Linux' driver needs: streams, no indirect descriptors. The guest
is ours: what it writes is checked as far as a test has to end with an error instead of nonsense.

    python -m support.vhost_vsock FOLDER CID PORT…
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import mmap
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

PARENTS: Final = (3, 2)
"""A Nitro enclave's parent; the host of any other virtual machine."""
BUFFER_BYTES: Final = 256 * 1024
"""What the guest may send ahead on one stream."""
CHUNK_BYTES: Final = 16 * 1024

VERSION_1: Final = 1 << 32
PROTOCOL_FEATURES: Final = 1 << 30
PROTOCOL_MQ_AND_CONFIG: Final = 1 << 0 | 1 << 9
VHOST_VERSION: Final = 1
IS_REPLY: Final = 4
NO_DESCRIPTOR: Final = 1 << 8
RX, TX = 0, 1

MESSAGE: Final = struct.Struct("<III")
REGION: Final = struct.Struct("<QQQQ")
RING_ADDRESS: Final = struct.Struct("<IIQQQQ")
PAIR: Final = struct.Struct("<II")
DESCRIPTOR: Final = struct.Struct("<QIHH")
DESCRIPTOR_NEXT: Final = 1
DESCRIPTOR_WRITE: Final = 2
HEADER: Final = struct.Struct("<QQIIIHHIII")
STREAM: Final = 1
SHUT_RECEIVE, SHUT_SEND = 1, 2


class Request(enum.IntEnum):
    """Messages of the vhost-user protocol that are answered or followed here."""

    GET_FEATURES = 1
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    GET_QUEUE_NUM = 17
    GET_CONFIG = 24


class Op(enum.IntEnum):
    """Operations of a packet."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What the guest sent."""

    source: tuple[int, int]
    """Context id and port."""
    target: tuple[int, int]
    op: int
    flags: int
    allowed: int
    forwarded: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A piece of the guest's memory."""

    guest: int
    user: int
    """The address that QEMU has it at."""
    size: int
    offset: int
    """In `view`."""
    view: mmap.mmap


class Memory:
    """The guest's memory, by its own addresses and by QEMU's."""

    def __init__(self) -> None:
        self._regions: list[Region] = []

    def map(self, table: bytes, descriptors: list[int]) -> None:
        """Follow SET_MEM_TABLE."""
        self._regions = []
        for number, descriptor in enumerate(descriptors):
            guest, size, user, offset = REGION.unpack_from(table, 8 + number * REGION.size)
            view = mmap.mmap(descriptor, size + offset)
            os.close(descriptor)
            region = Region(guest=guest, user=user, size=size, offset=offset, view=view)
            self._regions.append(region)

    def at_guest(self, address: int, size: int) -> tuple[mmap.mmap, int]:
        """Where `size` bytes at a guest's address lie."""
        return self._at(address, size, lambda region: region.guest)

    def at_user(self, address: int, size: int) -> tuple[mmap.mmap, int]:
        """Where they lie by an address of QEMU's."""
        return self._at(address, size, lambda region: region.user)

    def _at(self, address: int, size: int, begin: Callable[[Region], int]) -> tuple[mmap.mmap, int]:
        for region in self._regions:
            at = address - begin(region)
            if at >= 0 and at + size <= region.size:
                return region.view, region.offset + at
        raise ValueError("an address that is in no memory of the guest")


@dataclass(slots=True)
class Ring:
    """One split virtqueue."""

    memory: Memory
    size: int = 0
    next: int = 0
    """Of the available ring: the first entry that was not looked at."""
    call: int | None = None
    _descriptors: tuple[mmap.mmap, int] | None = None
    _available: tuple[mmap.mmap, int] | None = None
    _used: tuple[mmap.mmap, int] | None = None

    def place(self, descriptors: int, used: int, available: int) -> None:
        """Follow SET_VRING_ADDR."""
        self._descriptors = self.memory.at_user(descriptors, self.size * DESCRIPTOR.size)
        self._available = self.memory.at_user(available, 4 + 2 * self.size)
        self._used = self.memory.at_user(used, 4 + 8 * self.size)

    @property
    def ready(self) -> bool:
        """Whether the guest has said where it lies."""
        return self._used is not None

    def take(self) -> int | None:
        """The head of the next chain that the guest made available."""
        assert self._available is not None
        view, at = self._available
        (index,) = struct.unpack_from("<H", view, at + 2)
        if index == self.next:
            return None
        (head,) = struct.unpack_from("<H", view, at + 4 + 2 * (self.next % self.size))
        self.next = (self.next + 1) & 0xFFFF
        return int(head)

    def chain(self, head: int) -> Iterator[tuple[mmap.mmap, int, int, bool]]:
        """Buffers of a chain: memory, place, size, and whether they are to be written."""
        assert self._descriptors is not None
        view, at = self._descriptors
        for _ in range(self.size):
            address, size, flags, following = DESCRIPTOR.unpack_from(
                view, at + head * DESCRIPTOR.size
            )
            yield *self.memory.at_guest(address, size), size, bool(flags & DESCRIPTOR_WRITE)
            if not flags & DESCRIPTOR_NEXT:
                return
            head = following
        raise ValueError("a chain without an end")

    def give_back(self, head: int, written: int) -> None:
        """Put a chain on the used ring, and say so."""
        assert self._used is not None
        view, at = self._used
        (index,) = struct.unpack_from("<H", view, at + 2)
        PAIR.pack_into(view, at + 4 + 8 * (index % self.size), head, written)
        struct.pack_into("<H", view, at + 2, (index + 1) & 0xFFFF)
        if self.call is not None:
            os.write(self.call, struct.pack("<Q", 1))


@dataclass(slots=True)
class Connection:
    """One stream between a unix socket and the guest."""

    local: tuple[int, int]
    remote: tuple[int, int]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    open: asyncio.Event = field(default_factory=asyncio.Event)
    credit: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    """From the guest; an empty one says that no more comes."""
    allowed: int = 0
    forwarded: int = 0
    """Both of the guest's: what it takes ahead, and what it has taken."""
    sent: int = 0
    received: int = 0
    told: int = 0
    """How much of `received` the guest knows of."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Bytes that the guest takes now."""
        return self.allowed - ((self.sent - self.forwarded) & 0xFFFF_FFFF)


class Parent:
    """The backend of one guest."""

    def __init__(self, folder: Path, cid: int) -> None:
        self._folder = folder
        self._cid = cid
        self._memory = Memory()
        self._rings = {RX: Ring(self._memory), TX: Ring(self._memory)}
        self._waiting: deque[bytes] = deque()
        self._connections: dict[tuple[tuple[int, int], tuple[int, int]], Connection] = {}
        self._next_port = 1 << 20
        self._tasks: set[asyncio.Task[None]] = set()

    # --- vhost-user ---

    async def serve(self, connection: socket.socket) -> None:
        """Follow QEMU's messages until it goes."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(connection, self._message, connection, gone)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(connection)

    def _message(self, connection: socket.socket, gone: asyncio.Event) -> None:
        data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE.size, 16)
        if len(data) < MESSAGE.size:
            gone.set()
            return
        request, _, size = MESSAGE.unpack(data)
        connection.setblocking(True)
        payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
        answer = self._follow(request, payload, descriptors)
        if answer is not None:
            head = MESSAGE.pack(request, VHOST_VERSION | IS_REPLY, len(answer))
            connection.sendall(head + answer)
        connection.setblocking(False)

    def _follow(self, request: int, payload: bytes, descriptors: list[int]) -> bytes | None:
        match request:
            case Request.GET_FEATURES:
                return struct.pack("<Q", VERSION_1 | PROTOCOL_FEATURES)
            case Request.GET_PROTOCOL_FEATURES:
                return struct.pack("<Q", PROTOCOL_MQ_AND_CONFIG)
            case Request.GET_QUEUE_NUM:
                return struct.pack("<Q", len(self._rings))
            case Request.GET_CONFIG:
                return payload[:12] + struct.pack("<Q", self._cid).ljust(len(payload) - 12, b"\0")
            case Request.SET_MEM_TABLE:
                self._memory.map(payload, descriptors)
            case Request.SET_VRING_NUM | Request.SET_VRING_BASE:
                index, value = PAIR.unpack(payload)
                name = "size" if request == Request.SET_VRING_NUM else "next"
                setattr(self._rings[index], name, value)
            case Request.GET_VRING_BASE:
                index, _ = PAIR.unpack(payload)
                return PAIR.pack(index, self._rings[index].next)
            case Request.SET_VRING_ADDR:
                index, _, *places, _ = RING_ADDRESS.unpack(payload)
                self._rings[index].place(*places)
            case Request.SET_VRING_CALL | Request.SET_VRING_KICK:
                self._signal(request, struct.unpack("<Q", payload)[0], descriptors)
            case _:
                for descriptor in descriptors:
                    os.close(descriptor)
        return None

    def _signal(self, request: int, value: int, descriptors: list[int]) -> None:
        index = value & 0xFF
        if value & NO_DESCRIPTOR:
            return
        (descriptor,) = descriptors
        if request == Request.SET_VRING_CALL:
            self._rings[index].call = descriptor
            return
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._kicked, index, descriptor)
        self._kicked(index, None)  # it may have been kicked before anybody looked

    def _kicked(self, index: int, descriptor: int | None) -> None:
        if descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, 8)
        if not self._rings[index].ready:
            return
        if index == RX:
            self._deliver()
        else:
            self._collect()

    # --- packets ---

    def _collect(self) -> None:
        ring = self._rings[TX]
        while (head := ring.take()) is not None:
            data = b"".join(view[at : at + size] for view, at, size, _ in ring.chain(head))
            ring.give_back(head, 0)
            self._arrived(_parse(data))

    def _deliver(self) -> None:
        ring = self._rings[RX]
        while ring.ready and self._waiting and (head := ring.take()) is not None:
            data, written = self._waiting[0], 0
            for view, at, size, writable in ring.chain(head):
                piece = data[written : written + size] if writable else b""
                view[at : at + len(piece)] = piece
                written += len(piece)
            if written < len(data):
                raise ValueError("the guest's buffer is too small for a packet")
            self._waiting.popleft()
            ring.give_back(head, written)

    def _send(self, connection: Connection, op: Op, *, flags: int = 0, data: bytes = b"") -> None:
        connection.told = connection.received
        connection.sent = (connection.sent + len(data)) & 0xFFFF_FFFF
        self._queue(
            connection.local,
            connection.remote,
            op,
            flags=flags,
            forwarded=connection.received,
            data=data,
        )

    def _queue(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        op: Op,
        *,
        flags: int = 0,
        forwarded: int = 0,
        data: bytes = b"",
    ) -> None:
        (source_cid, source_port), (target_cid, target_port) = source, target
        head = HEADER.pack(
            *(source_cid, target_cid, source_port, target_port, len(data)),
            *(STREAM, op, flags, BUFFER_BYTES, forwarded),
        )
        self._waiting.append(head + data)
        self._deliver()

    def _arrived(self, packet: Packet) -> None:
        if packet.op == Op.REQUEST:
            self._spawn(self._from_guest(packet))
            return
        connection = self._connections.get((packet.target, packet.source))
        if connection is None:
            if packet.op != Op.RST:
                self._queue(packet.target, packet.source, Op.RST)
            return
        connection.allowed, connection.forwarded = packet.allowed, packet.forwarded
        if connection.room > 0:
            connection.credit.set()
        match packet.op:
            case Op.RESPONSE:
                connection.open.set()
            case Op.RW:
                connection.arrived.put_nowait(packet.data)
            case Op.CREDIT_REQUEST:
                self._send(connection, Op.CREDIT_UPDATE)
            case Op.RST:
                self._end(connection)
            case Op.SHUTDOWN:
                if packet.flags & SHUT_SEND:
                    connection.arrived.put_nowait(b"")
                if packet.flags & SHUT_RECEIVE:
                    connection.credit.set()
                    connection.allowed = -1

    # --- streams ---

    async def from_host(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry a connection to `guest-PORT.sock` into the guest."""
        self._next_port += 1
        connection = Connection((PARENTS[0], self._next_port), (self._cid, port), reader, writer)
        self._begin(connection)
        self._send(connection, Op.REQUEST)

    async def _from_guest(self, packet: Packet) -> None:
        cid, port = packet.target
        try:
            if cid not in PARENTS:
                raise ConnectionRefusedError
            path = self._folder / f"parent-{port}.sock"
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError:
            self._queue(packet.target, packet.source, Op.RST)
            return
        connection = Connection(packet.target, packet.source, reader, writer)
        connection.allowed, connection.forwarded = packet.allowed, packet.forwarded
        connection.open.set()
        connection.credit.set()
        self._begin(connection)
        self._send(connection, Op.RESPONSE)

    def _begin(self, connection: Connection) -> None:
        self._connections[connection.local, connection.remote] = connection
        for task in (self._to_guest(connection), self._to_host(connection)):
            connection.tasks.append(self._spawn(task))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _to_guest(self, connection: Connection) -> None:
        await connection.open.wait()
        while True:
            while connection.room <= 0:
                if connection.allowed < 0:
                    return
                connection.credit.clear()
                await connection.credit.wait()
            try:
                data = await connection.reader.read(min(connection.room, CHUNK_BYTES // 8))
            except OSError:
                data = b""
            if not data:
                self._send(connection, Op.SHUTDOWN, flags=SHUT_SEND)
                return
            self._send(connection, Op.RW, data=data)

    async def _to_host(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while data := await connection.arrived.get():
                connection.writer.write(data)
                await connection.writer.drain()
                connection.received = (connection.received + len(data)) & 0xFFFF_FFFF
                if (connection.received - connection.told) & 0xFFFF_FFFF >= BUFFER_BYTES // 4:
                    self._send(connection, Op.CREDIT_UPDATE)
            connection.writer.write_eof()
            # The guest closes when both directions have ended; it waits to hear of it.
            if connection.allowed >= 0:
                await connection.tasks[0]
        self._send(connection, Op.RST)
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._connections.pop((connection.local, connection.remote), None)
        connection.writer.close()
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()


def _parse(data: bytes) -> Packet:
    source_cid, target_cid, source_port, target_port, size, kind, op, flags, allowed, forwarded = (
        HEADER.unpack_from(data)
    )
    if kind != STREAM or len(data) < HEADER.size + size:
        raise ValueError("a packet that is none of a stream")
    return Packet(
        source=(source_cid, source_port),
        target=(target_cid, target_port),
        op=op,
        flags=flags,
        allowed=allowed,
        forwarded=forwarded,
        data=data[HEADER.size : HEADER.size + size],
    )


async def run(folder: Path, cid: int, ports: list[int]) -> None:
    """Serve one QEMU, which connects to ``vhost.sock``, until it goes."""
    parent = Parent(folder, cid)
    async with contextlib.AsyncExitStack() as stack:
        for port in ports:
            server = await asyncio.start_unix_server(
                partial(parent.from_host, port), str(folder / f"guest-{port}.sock")
            )
            stack.callback(server.close)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(str(folder / "vhost.sock"))
            listener.listen(1)
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            await parent.serve(connection)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
