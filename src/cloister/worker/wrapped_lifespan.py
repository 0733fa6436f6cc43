"""An application's lifespan with something of ours inside: begun after it, ended before it.

ASGI's lifespan protocol, version 2.0. An application that ends or fails before it answers the
first message takes no part, and the protocol is answered for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cloister.engine.asgi_call import App, Message
from cloister.worker.response import Receive, Scope, Send


class WrappedLifespan:
    """One lifespan call. `begin` returns None, or why it could not; `end` is called once."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        begin: Callable[[], Awaitable[str | None]],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._receive, self._send = receive, send
        self._begin, self._end = begin, end
        self._asked = False
        self._answered = False
        self._begun = False
        self._refused = False

    async def run(self, app: App, scope: Scope) -> None:
        """Return when the lifespan is over. Raises what `app` raises once it has started."""
        try:
            await app(scope, self._pass_on, self._answer)
        except Exception:
            if self._answered:
                raise
        finally:
            await self._end_once()
        if not self._answered:
            await self._alone()

    async def _pass_on(self) -> Message:
        """A message for the application."""
        if self._refused:
            return {"type": "lifespan.shutdown"}  # it started, and is not wanted
        message = await self._receive()
        if message["type"] == "lifespan.startup":
            self._asked = True
        else:
            await self._end_once()
        return message

    async def _answer(self, message: Message) -> None:
        """A message from the application."""
        if self._refused:
            return  # the server has been told already
        if message["type"] == "lifespan.startup.complete":
            message = await self._started()
        elif message["type"] == "lifespan.startup.failed":
            self._answered = True
        await self._send(message)

    async def _started(self) -> Message:
        refused = await self._begin()
        self._answered = True
        self._begun = refused is None
        if refused is None:
            return {"type": "lifespan.startup.complete"}
        self._refused = True
        return {"type": "lifespan.startup.failed", "message": refused}

    async def _end_once(self) -> None:
        if self._begun:
            self._begun = False
            await self._end()

    async def _alone(self) -> None:
        if not self._asked:
            await self._receive()
        answer = await self._started()
        await self._send(answer)
        if self._begun:
            await self._receive()
            await self._end_once()
            await self._send({"type": "lifespan.shutdown.complete"})
