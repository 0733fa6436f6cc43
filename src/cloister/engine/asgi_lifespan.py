"""The lifespan of an ASGI application, where nobody else drives it.

ASGI's lifespan protocol, version 2.0: start-up and shutdown are messages of one long call. An
application that fails before it answers the first, as ASGI has it, simply does not take part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any, Final

from cloister.engine.asgi_call import ASGI, App, Message
from cloister.errors import EngineError

_SHUTDOWN_S: Final = 30.0


class Lifespan:
    """Starts and stops one application, once each."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        """What the application made at start-up, for the scopes of its requests."""
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the application has started. EngineError (``engine.start``) if it cannot."""
        self._task = asyncio.create_task(self._run())
        await self._inbox.put({"type": "lifespan.startup"})
        answer = await self._outbox.get()
        if answer is not None and answer["type"] != "lifespan.startup.complete":
            await self.stop()
            # Its message may hold anything that it read from files; its own log has it.
            raise EngineError("the application says that it cannot start", code="engine.start")

    async def stop(self) -> None:
        """Return when the application has ended what it began, or time is up."""
        task, self._task = self._task, None
        if task is None:
            return
        await self._inbox.put({"type": "lifespan.shutdown"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHUTDOWN_S):
                await asyncio.wait({task})
        task.cancel()
        await asyncio.wait({task}, timeout=1)

    async def _run(self) -> None:
        scope: MutableMapping[str, Any] = {
            "type": "lifespan",
            "asgi": {**ASGI, "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException:  # what stays in a task is logged when that is collected
            return
        finally:
            self._outbox.put_nowait(None)
