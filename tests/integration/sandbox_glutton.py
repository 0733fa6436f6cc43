"""An engine's program that takes all it can get of what its first argument names.

Usage: ``sandbox_glutton.py CONTROL_FD SOCKET_DIRECTORY WAY LIMIT``. It takes until it is refused,
is ended, or has LIMIT, and then answers one connection with how much it has and why no more.
``sandbox_glutton.py print WAY LIMIT`` does the same outside and prints it. Standard library only.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable

SOCKET_NAME = "engine.sock"
_BLOCK = 1 << 20


def _threads(held: list[object]) -> None:
    _thread.stack_size(1 << 16)
    held.append(_thread.start_new_thread(time.sleep, (600,)))


def _memory(held: list[object]) -> None:
    held.append(bytearray(b"x") * _BLOCK)


def _addresses(held: list[object]) -> None:
    """Address space that costs nothing but page tables."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_long
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    if libc.mmap(None, _BLOCK << 10, mmap.PROT_READ, flags, -1, 0) == -1:
        raise OSError(ctypes.get_errno(), "refused")
    held.append(None)


def _descriptors(held: list[object]) -> None:
    held.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


def _sockets(held: list[object]) -> None:
    """Inodes: a bound socket keeps its own when it is closed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(f"{_directory()}/{len(held)}")
    held.append(None)


def _directory() -> str:
    return os.environ["TMPDIR"] if sys.argv[1] == "print" else sys.argv[2]


WAYS: dict[str, Callable[[list[object]], None]] = {
    "threads": _threads,
    "memory": _memory,
    "addresses": _addresses,
    "descriptors": _descriptors,
    "sockets": _sockets,
    "sockets-early": _sockets,
}


def take(way: str, limit: int) -> tuple[int, str]:
    """Take up to `limit`; return how much, and the name of the error that ended it."""
    held: list[object] = []
    why = "limit"
    while len(held) < limit:
        try:
            WAYS[way](held)
        except MemoryError:
            why = "ENOMEM"
        except RuntimeError:  # no more threads
            why = "EAGAIN"
        except OSError as error:
            why = errno.errorcode.get(error.errno or 0, "?")
        if why != "limit":
            break
    count = len(held)
    held.clear()  # room for the answer
    return count, why


def main() -> None:
    """Get ready, take, and answer."""
    if sys.argv[1] == "print":
        sys.stdout.write(json.dumps(take(sys.argv[2], int(sys.argv[3]))))
        sys.stdout.flush()
        os._exit(0)
    control = socket.socket(fileno=int(sys.argv[1]))
    way, limit = sys.argv[3], int(sys.argv[4])
    found = take(way, limit) if way == "sockets-early" else (0, "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{_directory()}/{SOCKET_NAME}")
        server.listen(1)
        control.send(b"ready")
        connection, _ = server.accept()
    with connection:
        found = found if found[1] else take(way, limit)
        connection.sendall(json.dumps(found).encode())
    control.recv(1)


if __name__ == "__main__":
    main()
