"""A `support.wire.Handler` behind a real socket on loopback, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.wire import Handler, WireRequest


@contextlib.contextmanager
def served(handler: Handler) -> Iterator[str]:
    """Serve `handler` on a free port of loopback; the value is its URL."""

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            length = int(self.headers.get("content-length", "0"))
            # To a forward proxy the request line names the whole URL.
            url = self.path if "://" in self.path else f"http://{self.headers['host']}{self.path}"
            reply = handler(
                WireRequest(
                    method=self.command,
                    url=url,
                    headers=list(self.headers.items()),
                    body=self.rfile.read(length),
                )
            )
            self.send_response(reply.status)
            for name, value in reply.headers:
                if name.lower() not in {"content-length", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for chunk in reply.chunks:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = answer  # noqa: N815 - names that the base class looks for

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
