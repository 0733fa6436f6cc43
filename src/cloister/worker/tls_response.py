"""One answer inside TLS, as plain HTTP: what `cloister.worker.response` is to the seal."""

from __future__ import annotations

import asyncio
import hashlib

from cloister.worker import wire
from cloister.worker.response import Send


class TlsResponseWriter:
    """Hashes and sends one response; each call of `data` is flushed as one chunk.

    The hash is that of the body's bytes (`aci/1` section 7.4). There are no trailers, since
    hardly a client of HTTP/1.1 reads them: a receipt is looked up.
    """

    __slots__ = (
        "_hash",
        "_head",
        "_now",
        "_pending",
        "_send",
        "blocked_since",
        "collects",
        "ended",
        "pieces",
        "sealed",
        "started",
        "status",
    )

    def __init__(self, send: Send) -> None:
        self._send = send
        self._hash = hashlib.sha256()
        self._pending = b""
        self._head: list[tuple[bytes, bytes]] = []
        self._now = asyncio.get_running_loop().time
        self.sealed = False
        self.collects = False
        self.started = False
        self.ended = False
        self.status = 0
        self.pieces = 0
        self.blocked_since = 0.0

    def head(self, status: int, headers: wire.Headers) -> None:
        """Take the status and the fields; they are sent with the first piece."""
        self.status = status
        self._head = list(headers)

    async def data(self, data: bytes) -> None:
        """Send content, which must not be empty, at once."""
        self._hash.update(data)
        self.pieces += 1
        # What a cancelled send leaves here goes with the next.
        self._pending += data
        self.blocked_since = self._now()
        await self._start()
        await self._send({"type": "http.response.body", "body": self._pending, "more_body": True})
        self._pending = b""
        self.blocked_since = 0.0

    def hold(self, data: bytes) -> None:
        """Take content that is sent together with the end."""
        self._hash.update(data)
        self._pending += data

    def end_content(self) -> bytes:
        """The SHA-256 of the whole body."""
        return self._hash.digest()

    async def end(self, trailers: wire.Headers, *, pad_to: int) -> None:
        """Send the rest and the end of the body; neither trailers nor padding are sent."""
        self.ended = True  # before the last await: the peer may go away during it
        self.blocked_since = self._now()
        await self._start()
        await self._send({"type": "http.response.body", "body": self._pending, "more_body": False})

    async def _start(self) -> None:
        if not self.started:
            start = {"type": "http.response.start", "status": self.status, "headers": self._head}
            await self._send(start)
            self.started = True
