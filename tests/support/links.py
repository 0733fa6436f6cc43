"""Ports that join two ends in memory: socket pairs and pseudo-terminals for virtio-serial."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import tty
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from cloister.streams.device import Device
from cloister.streams.serial import PortDialler, PortListener
from cloister.streams.stream import Stream

CONNECT_S = 60.0


class Port:
    """A port like QEMU's: the guest's end stays, the host's end comes and goes.

    Bytes that nobody has read are kept, as a socket's are.
    """

    def __init__(self) -> None:
        self.guest, self.host = socket.socketpair()

    async def open_guest(self) -> Device:
        return Device(os.dup(self.guest.fileno()), keeps_open=False)

    async def open_host(self) -> Device:
        return Device(os.dup(self.host.fileno()), keeps_open=False)

    def close(self) -> None:
        self.guest.close()
        self.host.close()


@contextlib.asynccontextmanager
async def ends(port: Port) -> AsyncIterator[tuple[PortListener, PortDialler]]:
    listener = PortListener(port.open_guest)
    await listener.start()
    dialler = PortDialler(port.open_host, connect_s=CONNECT_S, random=os.urandom)
    try:
        yield listener, dialler
    finally:
        await dialler.aclose()
        await listener.aclose()


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, Path]]:
    """A raw pseudo-terminal: descriptor of one end, path of the other."""
    master, slave = os.openpty()
    try:
        tty.setraw(master)
        tty.setraw(slave)
        yield master, Path(os.ttyname(slave))
    finally:
        os.close(slave)
        os.close(master)


async def everything(stream: Stream) -> bytes:
    """All that `stream` brings until its end."""
    pieces = []
    while data := await stream.receive():
        pieces.append(data)
    return b"".join(pieces)


async def pair(listener: PortListener, dialler: PortDialler) -> tuple[Stream, Stream]:
    """One stream: its end at the listener, its end at the dialler."""
    dialled, accepted = await asyncio.gather(dialler.dial(), listener.accept())
    return accepted, dialled


@contextlib.contextmanager
def virtio_port(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A port as QEMU makes it: path of the guest's device, path of the host's socket.

    The device is a pseudo-terminal. The socket takes one client after another, as that of
    ``-chardev socket,server=on,wait=off`` does.
    """
    host = folder / "host.sock"
    with terminal() as (master, guest), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(host))
        listening.listen(1)
        stop = threading.Event()
        carrying = threading.Thread(target=_carry_port, args=(listening, master, stop))
        carrying.start()
        try:
            yield guest, host
        finally:
            stop.set()
            carrying.join()


def _carry_port(listening: socket.socket, master: int, stop: threading.Event) -> None:
    listening.settimeout(0.02)
    while not stop.is_set():
        try:
            client, _ = listening.accept()
        except TimeoutError:
            continue
        with client, contextlib.suppress(ConnectionError):
            _carry_client(client.fileno(), master, stop)


def _carry_client(client: int, master: int, stop: threading.Event) -> None:
    for descriptor in (client, master):
        os.set_blocking(descriptor, False)
    other = {client: master, master: client}
    while not stop.is_set():
        for ready in select.select(list(other), [], [], 0.02)[0]:
            data = os.read(ready, 4096)
            if not data:
                return
            while data and not stop.is_set():
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(other[ready], data) :]
                if data:
                    select.select([], [other[ready]], [], 0.02)
