"""Carries one connection of an emulated guest's to a peer on or beyond this machine.

QEMU's own network lets nothing out that the guest begins, save to addresses that it is told to
hand to a program (``guestfwd``). This is that program: QEMU starts it for each connection, with the
guest's bytes as standard input and output, and its arguments say where the peer really is. Bytes
pass unread.

    python -I -m cloister.image.dial HOST PORT

Standard library only, so that it starts quickly.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Final

CONNECT_S: Final = 10.0
PIECE: Final = 1 << 16


def main(arguments: Sequence[str], *, near_in: int = 0, near_out: int = 1) -> int:
    """Carry until both directions have ended; 1 where the peer is not there or lets go."""
    host, port = arguments
    try:
        with socket.create_connection((host, int(port)), CONNECT_S) as far:
            far.settimeout(None)
            threading.Thread(target=_upwards, args=(near_in, far), daemon=True).start()
            while piece := far.recv(PIECE):
                _write(near_out, piece)
    except OSError:
        return 1
    return 0


def _upwards(near_in: int, far: socket.socket) -> None:
    """From the guest, until it ends its half; the peer hears of that."""
    try:
        while piece := os.read(near_in, PIECE):
            far.sendall(piece)
        far.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other direction ends too, and says so


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
