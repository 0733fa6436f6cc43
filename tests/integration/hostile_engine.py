"""An engine's program that serves HTTP, and turns hostile when its prompt says so.

It stands where `cloister.engine.llama_child` does, in the sandbox of the real engine. Standard
library only. A prompt that holds one of `WAYS` gets three events and then what it asks for;
others get an answer.

Usage: ``hostile_engine.py CONTROL_FD SOCKET_DIRECTORY SETTINGS_JSON``
"""

from __future__ import annotations

import _thread
import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable

SOCKET_NAME = "engine.sock"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _balloon() -> None:
    held = []
    try:
        while True:
            held.append(bytearray(b"x") * (16 << 20))
    except MemoryError:
        os._exit(9)  # as native engines do


def _threads() -> None:
    _thread.stack_size(1 << 16)
    while True:
        try:
            _thread.start_new_thread(time.sleep, (600,))
        except RuntimeError:
            os._exit(9)


def _spin() -> None:
    for _ in range(16):
        _thread.start_new_thread(_spin_one, ())


def _spin_one() -> None:
    while True:
        pass


def _log() -> None:
    """Flood the output with the prompt, from another thread, for ever."""
    text = b"canary-in-output " * 4_000

    def flood() -> None:
        while True:
            os.write(1, text)
            os.write(2, text)

    _thread.start_new_thread(flood, ())


def _words() -> None:
    CONTROL.send(b"a word of its own")
    time.sleep(600)


#: What each does after the third event. The last two go on answering meanwhile.
WAYS: dict[bytes, Callable[[], object]] = {
    b"way-balloon": _balloon,
    b"way-threads": _threads,
    b"way-crash": lambda: ctypes.string_at(8),
    b"way-exit": lambda: os._exit(0),
    b"way-words": _words,
    b"way-spin": _spin,
    b"way-log": _log,
}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def serve(connection: socket.socket) -> None:
    """Answer one request."""
    with connection, connection.makefile("rb") as reader:
        length = 0
        while (line := reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = reader.read(length)
        connection.sendall(HEAD + b"".join(_chunk(EVENT % b"w") for _ in range(3)))
        for way, act in WAYS.items():
            if way in body:
                act()
        connection.sendall(_chunk(EVENT % b"fine") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


CONTROL = socket.socket(fileno=int(sys.argv[1])) if __name__ == "__main__" else socket.socket()


def main() -> None:
    """Listen, be ready, serve each connection in a thread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{sys.argv[2]}/{SOCKET_NAME}")
        server.listen(16)
        CONTROL.send(b"ready")
        while True:
            connection, _ = server.accept()
            _thread.start_new_thread(serve, (connection,))


if __name__ == "__main__":
    main()
