"""The operator's own socket: is it alive, is it ready, what are the totals.

A unix socket, so that neither the network nor the sandbox reaches it. A dozen lines of HTTP
are enough for a probe and a scraper, and share nothing with the server of sealed requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from cloister.errors import ConfigurationError
from cloister.worker.metrics import Metrics

_MAX_HEAD: Final = 8192
_TIMEOUT_S: Final = 5.0
_MAX_CONNECTIONS: Final = 16


class OperatorServer:
    """``/livez``, ``/readyz``, ``/readyz/MODEL`` and ``/metrics`` on a unix socket, mode 0600.

    `ready` says of each model whether a request sent now would be answered.
    """

    def __init__(
        self, path: Path, *, metrics: Metrics, ready: Callable[[], Mapping[str, bool]]
    ) -> None:
        self.path = path
        self._metrics = metrics
        self._ready = ready
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self) -> None:
        """Listen. ConfigurationError when something that is no socket lies at the path."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ConfigurationError(
                    "something else lies where the operator socket should be",
                    code="configuration.operator_socket",
                )
            self.path.unlink()
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=_MAX_HEAD)
        finally:
            os.umask(before)

    async def aclose(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if self._connections <= _MAX_CONNECTIONS:
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        match head.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET", b"/livez", _]:
                return _response(b"200 OK", b"alive\n")
            case [b"GET", b"/readyz", _]:
                return _readiness(self._ready())
            case [b"GET", path, _] if path.startswith(b"/readyz/"):
                name = unquote(path.removeprefix(b"/readyz/").decode("latin-1"))
                known = {model: ready for model, ready in self._ready().items() if model == name}
                return _readiness(known) if known else _response(b"404 Not Found", b"unknown\n")
            case [b"GET", b"/metrics", _]:
                content_type = self._metrics.content_type.encode()
                return _response(b"200 OK", self._metrics.exposition(), content_type)
            case _:
                return _response(b"404 Not Found", b"/livez /readyz /metrics\n")


def _readiness(models: Mapping[str, bool]) -> bytes:
    """Ready when every one of `models` is; a line for each says which is not."""
    lines = [f"{name}: {'ready' if ready else 'not ready'}\n" for name, ready in models.items()]
    status = b"200 OK" if all(models.values()) else b"503 Service Unavailable"
    return _response(status, "".join(lines).encode())


def _response(status: bytes, body: bytes, content_type: bytes = b"text/plain") -> bytes:
    return (
        b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
        % (status, content_type, len(body), body)
    )
