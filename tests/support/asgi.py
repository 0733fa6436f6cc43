"""An ASGI application called in memory, with a peer that may dawdle or go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

App = Callable[..., Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class Outer:
    """What came back outside the seal."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Call:
    """One request in progress. `gone` makes the peer disappear."""

    def __init__(
        self,
        app: App,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes] = b"",
        headers: Headers = (),
        query: bytes = b"",
        client: tuple[str, int] = ("127.0.0.1", 40000),
    ) -> None:
        self.outer = Outer()
        self.gone = asyncio.Event()
        self.reading = asyncio.Event()
        """Clear it, and the peer stops reading."""
        self.reading.set()
        self._body = body if not isinstance(body, bytes) else _once(body)
        self._source = self._body.__aiter__()
        self._sent_all = False
        self._piece = asyncio.Event()
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(name.lower(), value) for name, value in headers],
            "client": client,
        }
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: App, scope: MutableMapping[str, Any]) -> None:
        await app(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._sent_all:
            following = asyncio.ensure_future(anext(self._source, None))
            gone = asyncio.ensure_future(self.gone.wait())
            try:
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    piece = following.result()
                    self._sent_all = piece is None
                    return {
                        "type": "http.request",
                        "body": piece or b"",
                        "more_body": piece is not None,
                    }
            finally:
                gone.cancel()
                following.cancel()
            return {"type": "http.disconnect"}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.outer.status = message["status"]
            self.outer.headers = dict(message["headers"])
            return
        if message.get("body"):
            self.outer.pieces.append(message["body"])
        self.outer.complete = not message.get("more_body", False)
        self._piece.set()

    async def pieces(self, count: int) -> None:
        """Wait until `count` pieces have arrived."""
        async with asyncio.timeout(60):
            while len(self.outer.pieces) < count and not self.task.done():
                self._piece.clear()
                await self._piece.wait()

    async def result(self) -> Outer:
        """Wait for the end."""
        async with asyncio.timeout(30):
            await self.task
        return self.outer


async def _once(body: bytes) -> AsyncIterable[bytes]:
    yield body


async def call(app: App, method: str, path: str, **options: Any) -> Outer:
    """One whole request and response."""
    return await Call(app, method, path, **options).result()
