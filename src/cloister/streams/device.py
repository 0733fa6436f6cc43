"""One file descriptor as a link of bytes: a virtio-serial port, the socket at its other end.

Linux' driver (``drivers/char/virtio_console.c``): a guest's port opened non-blocking reads as
ended, and cannot be written to, while nobody on the host has the other end open; poll reports
that as a hang-up, which wakes every waiter at once. So a wake-up that brought nothing is followed
by a short sleep here, and an end is no reason to close the port. A port can be opened once at a
time. A port's other end is the socket of a ``-chardev socket`` of QEMU, which takes one client at
a time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from cloister.streams.stream import CHUNK_BYTES

ABSENT_S: Final = 0.1
"""Between two looks at a port whose other end nobody has open."""


class AbsentError(ConnectionError):
    """Nobody has the other end of the port open at the moment."""


class Device:
    """An open, non-blocking descriptor that this object owns."""

    def __init__(self, descriptor: int, *, keeps_open: bool) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._keeps_open = keeps_open

    async def read(self) -> bytes:
        """Some bytes; AbsentError where a port's other end is not open, else OSError at an end."""
        while True:
            try:
                data = os.read(self._descriptor, CHUNK_BYTES)
            except BlockingIOError:
                await readable(self._descriptor)
                continue
            if data:
                return data
            if self._keeps_open:
                raise AbsentError("the other end of the port is not open")
            raise ConnectionResetError("the link has ended")

    async def write(self, data: bytes) -> None:
        """Write all of `data`; cancelled, it may have written a part."""
        view = memoryview(data)
        woken = False
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
                woken = False
            except BlockingIOError:
                if woken:  # by a hang-up: nothing can be written yet
                    await asyncio.sleep(ABSENT_S)
                await writable(self._descriptor)
                woken = True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


async def open_device(path: str) -> Device:
    """Open a character device, or connect to a unix socket; whichever lies at `path`.

    Raises OSError.
    """
    if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - a path of an address, as it is
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
            opened.setblocking(False)
            # At once, or an error: whoever made the socket listens, or does not.
            opened.connect(path)
            return Device(opened.detach(), keeps_open=False)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return Device(descriptor, keeps_open=True)


async def readable(descriptor: int) -> None:
    """Wait until `descriptor` can be read, has ended or has failed."""
    loop = asyncio.get_running_loop()
    await _ready(descriptor, loop.add_reader, loop.remove_reader)


async def writable(descriptor: int) -> None:
    """Wait until `descriptor` can be written to, or has failed."""
    loop = asyncio.get_running_loop()
    await _ready(descriptor, loop.add_writer, loop.remove_writer)


async def _ready(
    descriptor: int,
    add: Callable[..., object],
    remove: Callable[[int], bool],
) -> None:
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    add(descriptor, wake)
    try:
        await woken
    finally:
        remove(descriptor)
