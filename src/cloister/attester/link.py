"""Messages between a launcher and its worker: four bytes of length, then JSON.

Over an inherited socket pair, so that nobody else can read or write them. The launcher's end
closes when the launcher is gone, however it went: that is how the worker learns of it.
Standard library only, for `cloister.attester._start` runs before the import path is set.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; OSError if the other side is gone."""
    data = json.dumps(message, separators=(",", ":")).encode()
    connection.sendall(len(data).to_bytes(4, "big") + data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Wait for one message; None once the other side is gone."""
    header = _exactly(connection, 4)
    if header is None:
        return None
    size = int.from_bytes(header, "big")
    data = _exactly(connection, size) if size <= MAX_MESSAGE_BYTES else None
    if data is None:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        try:
            piece = connection.recv(min(size - len(received), 1 << 20))
        except ConnectionError:
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)
