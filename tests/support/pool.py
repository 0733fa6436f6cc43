"""A pool of fake engines on a clock that the test turns.

None of its processes outlives `running`, and every test that uses it shows that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from cloister.engine.protocol import CHAT_COMPLETIONS, EngineRequest, EngineResponse
from cloister.testing.fake_engine import FakeEngine
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.pool import EnginePool
from cloister.worker.settings import Limits, Separation, SeparationMode

OFF = Separation(recycle_requests=0, recycle_idle_s=0, recycle_age_s=0)
PER_CLIENT = dataclasses.replace(OFF, mode=SeparationMode.PER_CLIENT)


class Clock:
    """A steady clock that the test turns. It stands still otherwise, so that no bound is reached
    by a slow machine; but it tells no time twice, so that what was used last is known."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        self.ahead += 1e-6
        return 1_000 + self.ahead


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Bench:
    pool: EnginePool
    engine: FakeEngine
    clock: Clock
    stream: io.StringIO
    answers: list[EngineResponse] = dataclasses.field(default_factory=list)

    @property
    def family(self) -> list[FakeEngine]:
        return self.engine.family

    @property
    def alive(self) -> list[int]:
        """Which of the family are alive, by the order in which they were made."""
        return [place for place, one in enumerate(self.started) if one.alive]

    @property
    def started(self) -> list[FakeEngine]:
        return [one for one in self.family if one.starts]

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    async def open(self, client: str | None = None, asker: str = "") -> EngineResponse:
        """Ask, and leave the answer unread."""
        return (await self._send(client, asker))[0]

    async def ask(self, client: str | None = None, asker: str = "") -> int:
        """Ask, and read the answer; which process gave it."""
        response, request = await self._send(client, asker)
        async for _ in response.chunks:
            pass
        await response.aclose()
        self.answers.remove(response)
        return next(self.started.index(engine) for asked, engine in self._noted if asked is request)

    async def _send(self, client: str | None, asker: str) -> tuple[EngineResponse, EngineRequest]:
        body = b'{"stream":true}'
        request = EngineRequest(path=CHAT_COMPLETIONS, body=body, client=client)
        response = await self.pool.send(request, asker=asker or client or "someone")
        self.answers.append(response)
        return response, request

    @property
    def _noted(self) -> list[tuple[EngineRequest, FakeEngine]]:
        assert isinstance(self.engine, Noting)
        return self.engine.order

    @property
    def served(self) -> list[int]:
        """Which process got each request, in order."""
        return [self.started.index(engine) for _, engine in self._noted]


@dataclasses.dataclass(slots=True, kw_only=True)
class Noting(FakeEngine):
    """Notes in which order the members of its family are asked."""

    order: list[tuple[EngineRequest, FakeEngine]] = dataclasses.field(default_factory=list)

    async def send(self, request: EngineRequest) -> EngineResponse:
        if request.path == CHAT_COMPLETIONS:
            self.order.append((request, self))
        return await FakeEngine.send(self, request)


@contextlib.asynccontextmanager
async def running(
    separation: Separation = OFF,
    *,
    engine: FakeEngine | None = None,
    **limits: float,
) -> AsyncIterator[Bench]:
    engine = engine or Noting(recyclable=True, slots=4)
    clock, stream = Clock(), io.StringIO()
    pool = EnginePool(
        engine,
        EventLog(stream),
        separation=separation,
        limits=dataclasses.replace(Limits(), **limits),  # type: ignore[arg-type]  # ints where ints are due
        steady=clock,
        metrics=Metrics(),
        first_delay_s=0.01,
        tick_s=0.01,
    )
    await pool.start()
    bench = Bench(pool=pool, engine=engine, clock=clock, stream=stream)
    try:
        yield bench
    finally:
        for response in bench.answers:
            await response.aclose()
        await pool.aclose()
        assert pool.processes == 0
        assert not any(one.alive for one in engine.family)


async def quiet(condition: Callable[[], bool], ticks: int = 10) -> None:
    """`condition` holds, and goes on holding while the pool looks around several times."""
    for _ in range(ticks):
        assert condition()
        await asyncio.sleep(0.01)


class Slow(Noting):
    """Siblings start when `hold` is set."""

    hold: asyncio.Event

    def __post_init__(self) -> None:
        if not self.family:
            self.hold = asyncio.Event()
            self.hold.set()
        super().__post_init__()

    async def start(self) -> None:
        self.starts += 1
        first = self.family[0]
        assert isinstance(first, Slow)
        await first.hold.wait()
        await super().start()
