"""One request to an ASGI application in this process, and its answer.

The application runs in a task of its own, in an empty context: nothing that belongs to the
request outside the seal reaches it (neither fields, nor addresses, nor context variables). Of its
answer only status, content type and body come back. It is made to wait while nobody reads, and
told that the client has gone (``http.disconnect``) when the answer is given up; if it does not
heed that, its task is cancelled. What it raises is dropped, text and all: that may repeat the
prompt.

ASGI 3.0, https://asgi.readthedocs.io/en/latest/specs/www.html. Spec version 2.3 is named, as
uvicorn does: from 2.4 on frameworks no longer listen for ``http.disconnect`` while they stream.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.engine.protocol import PROTOCOL, TRUNCATED
from cloister.errors import EngineError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ASGI: Final[Mapping[str, str]] = {"version": "3.0", "spec_version": "2.3"}
HIGH_WATER: Final = 1 << 18
"""Unread bytes of an answer at which the application is made to wait."""
GRACE_S: Final = 5.0
"""What an application has to end an answer that nobody reads, before its task is cancelled."""
_MAX_CONTENT_TYPE: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AppHead:
    """What of an answer's head is looked at."""

    status: int
    content_type: str


class AppCall:
    """One call, begun at once. Iterating yields the answer's body as the application sends it."""

    def __init__(
        self, app: App, scope: MutableMapping[str, Any], body: bytes, *, max_bytes: int
    ) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._given = False
        self._head: AppHead | None = None
        self._ready: list[bytes] = []
        self._held = 0
        self._total = 0
        self._complete = False
        self._error: EngineError | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run(app, scope), context=contextvars.Context())

    # -- the application's side -------------------------------------------------------

    async def _run(self, app: App, scope: MutableMapping[str, Any]) -> None:
        why = "the application ended before its answer was complete"
        try:
            await app(scope, self._receive, self._send)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException:  # what stays in a task is logged when that is collected
            why = "the application failed"
        finally:
            if not self._complete:
                self._fail(why, TRUNCATED)

    async def _receive(self) -> Message:
        if not self._given:
            self._given = True
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._over.is_set():
            # An application that goes on all the same must not keep the loop to itself.
            await asyncio.sleep(0)
            raise OSError("nobody reads this answer")
        match message["type"]:
            case "http.response.start" if self._head is None:
                self._head = self._read_head(message)
            case "http.response.body" if self._head is not None:
                self._take(bytes(message.get("body", b"")), more=message.get("more_body", False))
            case _:
                self._fail("the application's answer is out of order", PROTOCOL)
        self._news.set()
        while self._held > HIGH_WATER and not self._over.is_set():
            self._room.clear()
            await self._room.wait()

    def _read_head(self, message: Message) -> AppHead:
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status < 600:
            self._fail("the application answers with a status that is none", PROTOCOL)
        types = [value for name, value in message.get("headers", ()) if name == b"content-type"]
        content_type = bytes(types[0]).decode("latin-1") if len(types) == 1 else ""
        plain = content_type.isascii() and content_type.isprintable()
        if len(content_type) > _MAX_CONTENT_TYPE or not plain:
            content_type = ""
        return AppHead(status=status, content_type=content_type)

    def _take(self, data: bytes, *, more: bool) -> None:
        self._total += len(data)
        if self._total > self._max_bytes:
            self._ready.clear()
            self._fail("the application's answer is too long", PROTOCOL)
            return
        if data:
            self._ready.append(data)
            self._held += len(data)
        if not more:
            self._complete = True
            self._over.set()

    def _fail(self, message: str, code: str) -> None:
        if self._error is None:
            self._error = EngineError(message, code=code)
        self._over.set()
        self._room.set()
        self._news.set()

    # -- the worker's side ------------------------------------------------------------

    async def head(self) -> AppHead:
        """Wait for the answer's head. EngineError if the application fails before."""
        while self._head is None and self._error is None:
            await self._wait()
        if self._error is not None and not self._ready:
            raise self._error
        if self._head is None:
            raise RuntimeError("a body comes after a head")
        return self._head

    def __aiter__(self) -> AppCall:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            await self._wait()
        data = b"".join(self._ready)
        self._ready.clear()
        self._held = 0
        self._room.set()
        return data

    async def _wait(self) -> None:
        self._news.clear()
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Tell the application that the client has gone; cancel it if it does not end soon.

        After a complete answer it is left to finish what it does behind it.
        """
        self._ready.clear()
        self._held = 0
        if not self._complete and not self.task.done():
            self._fail("the request was given up", TRUNCATED)
            self._loop.call_later(GRACE_S, self.task.cancel)

    async def aclose(self) -> None:
        """As `give_up`; harmless when the answer has ended."""
        self.give_up()
