"""Keeps the engine running: starts it, and starts it again, ever more patiently, when it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cloister.engine.protocol import (
    NOT_RUNNING,
    Engine,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.errors import CloisterError, EngineError
from cloister.worker.logs import EventLog

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
STEADY_AFTER_S = 60.0
"""An engine that ran this long starts again without delay."""


class EngineSupervisor:
    """Owns one engine. `start` raises what the engine raises: a worker does not begin without."""

    def __init__(
        self,
        engine: Engine,
        log: EventLog,
        *,
        on_restart: Callable[[], None],
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        self._engine = engine
        self._log = log
        self._first_delay_s = first_delay_s
        self._task: asyncio.Task[None] | None = None
        self._on_restart = on_restart
        self.restarts = 0

    @property
    def model(self) -> ModelInfo:
        """The model the engine serves."""
        return self._engine.model

    @property
    def paths(self) -> Paths:
        """What the engine serves."""
        return self._engine.paths

    @property
    def ready(self) -> bool:
        """Whether the engine answers."""
        return self._engine.alive

    async def start(self) -> None:
        """Start the engine and watch it from now on."""
        await self._engine.start()
        self._task = asyncio.create_task(self._watch())

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Pass one request on. EngineError, with code NOT_RUNNING while it is down."""
        if not self._engine.alive:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        return await self._engine.send(request)

    async def aclose(self) -> None:
        """Stop watching and end the engine."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._engine.aclose()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        delay = self._first_delay_s
        while True:
            began = loop.time()
            await self._engine.wait_stopped()
            if loop.time() - began >= STEADY_AFTER_S:
                delay = self._first_delay_s
            self._log.event("engine.stopped", restart_in_s=round(delay, 3))
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_S)
                try:
                    await self._engine.start()
                except (CloisterError, OSError) as error:
                    self._log.failure("engine.start_failed", error)
                    continue
                self.restarts += 1
                self._on_restart()
                self._log.event("engine.restarted", restarts=self.restarts)
                break
