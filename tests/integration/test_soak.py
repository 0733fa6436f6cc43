"""A worker that is used and abused on end stays the size it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import RateLimit, WorkerSettings
from support.sealed import chat, until
from support.worker import Bench, running

KEY_LIFE_S = 3600.0
SETTINGS = WorkerSettings(rate=RateLimit(per_minute=0, burst=1))


def script(_path: str, body: Mapping[str, Any]) -> Answer:
    match body["messages"][0]["content"]:
        case "crash":
            return Answer(crash_after=3)
        case "refuse":
            return Answer(status=400)
        case "slow":
            return Answer(rate=50)
        case _:
            return Answer()


async def whole(bench: Bench) -> None:
    assert (await bench.peer.ask(document=chat())).status == 200


async def streamed(bench: Bench) -> None:
    assert (await bench.peer.ask(document=chat(stream=True))).events[-1] == "[DONE]"


async def refused(bench: Bench) -> None:
    assert (await bench.peer.ask(document=chat("refuse"))).status == 400


async def crashed(bench: Bench) -> None:
    await bench.peer.ask(document=chat("crash", stream=True))
    await until(lambda: bench.worker.ready)


async def left(bench: Bench) -> None:
    call = bench.peer.start(bench.peer.seal(document=chat("slow", stream=True)))
    await call.pieces(1)
    call.gone.set()
    await call.result()


async def rotated(bench: Bench) -> None:
    bench.clocks.steady_offset += KEY_LIFE_S + 1
    await whole(bench)


ACTIONS = (whole, streamed, refused, crashed, left, rotated)
WEIGHTS = (10, 10, 3, 0, 3, 1)
"""Crashes happen once: after each the engine is started more patiently, by design."""


@pytest.mark.parametrize(
    "rounds", [60, pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
async def test_nothing_piles_up(rounds: int) -> None:
    chosen = random.Random(rounds).choices(ACTIONS, WEIGHTS, k=rounds)
    async with running(SETTINGS, engine=FakeEngine(script=script)) as bench:
        await whole(bench)
        before = len(asyncio.all_tasks())
        for action in (*ACTIONS, *chosen):
            await action(bench)
            bench.engine.requests.clear()
        await until(lambda: bench.engine.running == 0 and bench.worker.open_requests == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before)
        # Keys of past hours are gone: two that overlap, of two kinds each.
        assert len(bench.worker.context.keys.opening_keys()) <= 4
        await whole(bench)
