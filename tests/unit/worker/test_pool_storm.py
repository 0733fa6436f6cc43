"""A pool under everything at once: crashes, failing starts, clocks that jump, people who leave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import random
from typing import Any

import pytest

from cloister.engine.protocol import CHAT_COMPLETIONS, EngineRequest, EngineResponse
from cloister.errors import EngineError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker import pool as pool_module
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.pool import EnginePool
from cloister.worker.settings import Limits, Separation, SeparationMode

SLOTS = 4
SHARED = Separation(recycle_requests=7)
EACH = Separation(recycle_requests=1, max_processes=3, warm=1)
PER_CLIENT = Separation(mode=SeparationMode.PER_CLIENT, max_processes=4, warm=1, recycle_requests=5)
ONE = Separation(max_processes=1, recycle_requests=5)
DICE = random.Random()
"""Seeded by each test."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Remembering(FakeEngine):
    """Notes who has asked it, and how many at a time; fails to start now and then."""

    clients: list[str | None] = dataclasses.field(default_factory=list, init=False)
    most: int = dataclasses.field(default=0, init=False)

    async def start(self) -> None:
        await asyncio.sleep(DICE.uniform(0, 0.01))
        if self.family[0].starts and DICE.random() < 0.2:
            self.starts += 1
            raise (EngineError("no", code="engine.start") if DICE.random() < 0.5 else OSError())
        await FakeEngine.start(self)

    async def send(self, request: EngineRequest) -> EngineResponse:
        if request.path == CHAT_COMPLETIONS:
            self.clients.append(request.client)
            if DICE.random() < 0.3:
                await asyncio.sleep(DICE.uniform(0, 0.01))
        response = await FakeEngine.send(self, request)
        self.most = max(self.most, self.running)
        return response


def _script(_: str, __: Any) -> Answer:
    dice = DICE.random()
    if dice < 0.05:
        return Answer(crash_after=2)
    if dice < 0.1:
        return Answer(stall_after=2)
    return Answer(rate=DICE.choice([None, 2000.0]), tokens=("x",) * DICE.randrange(1, 30))


async def _somebody(pool: EnginePool, number: int) -> None:
    client = None if number % 5 == 0 else f"client-{number % 3}"
    request = EngineRequest(path=CHAT_COMPLETIONS, body=b'{"stream":true}', client=client)
    for _ in range(8):
        await asyncio.sleep(DICE.uniform(0, 0.02))
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(DICE.choice([0.001, 0.02, 0.2, 5])):
                response = await pool.send(request, asker=client or object())
                async with response:
                    async for _ in response.chunks:
                        if DICE.random() < 0.05:
                            break


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "separation", [SHARED, EACH, PER_CLIENT, ONE], ids=["shared", "each", "per-client", "one"]
)
async def test_no_place_is_lost_no_bound_is_passed_and_nobody_meets(
    separation: Separation, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each crash doubles the time before the next start, and a slow machine sees more of them.
    monkeypatch.setattr(pool_module, "LONGEST_DELAY_S", 0.05)
    DICE.seed(seed)
    engine = Remembering(script=_script, recyclable=True, slots=SLOTS)
    ahead = 0.0
    loop = asyncio.get_running_loop()
    pool = EnginePool(
        engine,
        EventLog(io.StringIO()),
        separation=separation,
        limits=Limits(stall_s=0.3, queue_s=2.0),
        steady=lambda: loop.time() + ahead,
        metrics=Metrics(),
        first_delay_s=0.001,
        tick_s=0.005,
    )
    await pool.start()
    people = [asyncio.create_task(_somebody(pool, number)) for number in range(12)]
    most = 0
    while not all(person.done() for person in people):
        await asyncio.sleep(0.01)
        most = max(most, pool.processes, sum(one.alive for one in engine.family))
        ahead += DICE.choice([0, 0, 0, 0, 30, 100])
        if DICE.random() < 0.05:
            DICE.choice(engine.family).crash()
    for person in people:
        person.result()
    async with asyncio.timeout(60):
        while True:  # whatever was lost shows in who can still be served
            with contextlib.suppress(EngineError):
                request = EngineRequest(path=CHAT_COMPLETIONS, body=b'{"stream":true}', client="z")
                await (await pool.send(request, asker="z")).read(1 << 20)
                break
            await asyncio.sleep(0.01)
    assert not any(one.open for one in pool._members)
    assert not pool._queue._lines and not pool._queue._turns and not pool._queue._running
    assert most <= separation.max_processes
    for one in engine.family:
        assert isinstance(one, Remembering)
        assert one.most <= SLOTS
        assert len(one.clients) <= separation.recycle_requests
        if separation.mode is SeparationMode.PER_CLIENT:
            assert len(set(one.clients)) <= 1
            assert one.clients in ([], [None]) or None not in one.clients
    await pool.aclose()
    assert pool.processes == 0
    assert not any(one.alive for one in engine.family)
