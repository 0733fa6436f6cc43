"""A TCP relay on loopback that writes down every byte, and can answer in the worker's place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_READ = 65536


@dataclass
class Tap:
    """What a machine between client and worker reads off the wire."""

    upstream: str
    url: str = ""
    up: bytearray = field(default_factory=bytearray)
    """Everything that clients sent."""
    down: bytearray = field(default_factory=bytearray)
    """Everything that came back."""
    canned: bytes | None = None
    """Sent instead of passing a POST on, byte for byte; then the connection closes."""

    def __contains__(self, secret: bytes) -> bool:
        return secret in self.up or secret in self.down


@contextlib.contextmanager
def tapped(upstream: str) -> Iterator[Tap]:
    """Relay a free port of loopback to `upstream`."""
    listener = socket.create_server(("127.0.0.1", 0))
    tap = Tap(upstream=upstream, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_relay, args=(tap, client, connections))
            threads.append(thread)
            thread.start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield tap
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for connection in connections:
            _hang_up(connection)
        for thread in threads:
            thread.join()


def _relay(tap: Tap, client: socket.socket, connections: list[socket.socket]) -> None:
    target = urlsplit(tap.upstream)
    with client, contextlib.suppress(OSError):
        worker = socket.create_connection((str(target.hostname), int(target.port or 0)))
        with worker:
            connections += [client, worker]
            back = threading.Thread(target=_pump, args=(worker, client, tap.down))
            back.start()
            try:
                while data := client.recv(_READ):
                    tap.up += data
                    if tap.canned is not None and data.startswith(b"POST"):
                        client.sendall(tap.canned)
                        return
                    worker.sendall(data)
            finally:
                _hang_up(worker)
                back.join()


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_READ):
            record += data
            sink.sendall(data)
    _hang_up(sink)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
