"""A web server on this machine that plays a vendor's service: well, badly, or not at all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    endless: bool = False
    """Goes on with the body for ever, without saying how long it is."""
    hangs: str = ""
    """``silent``: no answer; ``drip``: a byte now and then."""


Answer: TypeAlias = Reply | Callable[[bytes], Reply]


@dataclass(slots=True)
class VendorServer:
    """`answers` by path with query; what is asked stands in `asked`."""

    answers: dict[str, Answer | list[Reply]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, body: bytes) -> Reply:
        with self._lock:
            self.asked.append(path)
            answer = self.answers.get(path, Reply(404))
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer if isinstance(answer, Reply) else answer(body)


@contextlib.contextmanager
def vendor_server() -> Iterator[VendorServer]:
    """Run a server until the block is left."""
    state = VendorServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bytes) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self._send(state.reply(self.path, body))

        def _send(self, reply: Reply) -> None:
            if reply.hangs == "silent":
                state.ended.wait()
                return
            if reply.hangs == "drip":
                while not state.ended.wait(0.05):
                    self.wfile.write(b"H")
                    self.wfile.flush()
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("connection", "close")
            if not reply.endless:
                self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            while reply.endless and not state.ended.is_set():
                self.wfile.write(b"x" * 65536)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
