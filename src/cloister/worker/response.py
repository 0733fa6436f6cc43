"""One inner response, from parts to sealed pieces. The hot path of streaming is `data`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cloister.channel.bhttp import ResponseEncoder, ResponseHead
from cloister.channel.ohttp import ServerRequest
from cloister.worker import wire

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]


class ResponseWriter:
    """Encodes, hashes, seals and sends one response.

    Each call of `data` becomes one sealed piece, sent at once; the head goes with the first.
    A response to an unchunked request is collected and sealed whole, as its format demands.
    """

    __slots__ = (
        "_chunked",
        "_collected",
        "_encoder",
        "_hash",
        "_now",
        "_pending",
        "_sealed",
        "_sealer",
        "_send",
        "_unsent",
        "blocked_since",
        "collects",
        "ended",
        "pieces",
        "sealed",
        "started",
        "status",
    )

    def __init__(self, sealed: ServerRequest, *, chunked: bool, send: Send) -> None:
        self._sealed = sealed
        self._sealer = sealed.respond_chunked() if chunked else None
        self._chunked = chunked
        self._send = send
        self._encoder = ResponseEncoder()
        self._hash = hashlib.sha256()
        self._pending = b""
        self._unsent = b""
        self._collected: list[bytes] = []
        self._now = asyncio.get_running_loop().time
        self.sealed = True
        self.collects = not chunked
        self.started = False
        self.ended = False
        self.status = 0
        self.pieces = 0
        self.blocked_since = 0.0
        """When the send now waiting began (loop time); 0 while none waits."""

    def head(self, status: int, headers: wire.Headers) -> None:
        """Encode the head; it is sent with the first piece."""
        self.status = status
        self._pending = self._encoder.head(ResponseHead(status=status, headers=headers))
        self._hash.update(self._pending)

    async def data(self, data: bytes) -> None:
        """Send content, which must not be empty, as one piece."""
        encoded = self._encoder.data(data)
        self._hash.update(encoded)
        if self._pending:
            encoded, self._pending = self._pending + encoded, b""
        self.pieces += 1
        sealer = self._sealer
        if sealer is None:
            self._collected.append(encoded)
            return
        # What a cancelled send leaves here goes with the next: pieces open in their order only.
        self._unsent += sealer.chunk(encoded)
        self.blocked_since = self._now()
        if not self.started:
            await self._start()
        await self._send({"type": "http.response.body", "body": self._unsent, "more_body": True})
        self._unsent = b""
        self.blocked_since = 0.0

    def hold(self, data: bytes) -> None:
        """Take content that is sent together with the end.

        Lengths of chunks are in clear. Sealed by itself, a whole answer would show its length
        to the byte; sealed with trailers and padding it shows how many buckets it fills.
        """
        encoded = self._encoder.data(data)
        self._hash.update(encoded)
        self._pending += encoded

    def end_content(self) -> bytes:
        """End the content and return the SHA-256 of everything up to here."""
        terminator = self._encoder.end_content()
        self._hash.update(terminator)
        self._pending += terminator
        return self._hash.digest()

    async def end(self, trailers: wire.Headers, *, pad_to: int) -> None:
        """Send the trailers, padding to a multiple of `pad_to`, and the authenticated end."""
        last = self._pending + self._encoder.end(trailers, pad_to=pad_to)
        self.ended = True  # before the last await: the peer may go away during it
        self.blocked_since = self._now()
        if self._sealer is not None:
            await self._start()
            body = self._unsent + self._sealer.chunk(last, final=True)
        else:
            body = self._sealed.respond(b"".join([*self._collected, last]))
            await self._start(len(body))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, length: int | None = None) -> None:
        if self.started:
            return
        media_type = wire.CHUNKED_RESPONSE_TYPE if self._chunked else wire.RESPONSE_TYPE
        headers = [(b"content-type", media_type), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        else:
            # Proxies that collect answers would undo the flush after each event.
            headers.append((b"x-accel-buffering", b"no"))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.started = True
