"""A pool whose engine freezes, falls silent or ends: it is noticed, and another takes over."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    HEALTH,
    NO_DESCRIPTOR,
    STOPPED,
    EngineRequest,
    EngineResponse,
)
from cloister.errors import EngineError
from cloister.testing.fake_engine import Answer
from cloister.worker import member as member_module
from support.pool import OFF, Bench, Noting, Slow, quiet, running
from support.sealed import until


async def test_a_frozen_engine_is_noticed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "PROBE_EVERY_S", 0.02)
    # Its answer takes longer than it takes to notice, also on a slow machine.
    answer = Answer(rate=20, tokens=("x",) * 2000)
    engine = Noting(script=lambda *_: answer, recyclable=True, slots=4)
    async with running(engine=engine, probe_s=0.3) as bench:
        stream = await bench.open()
        await anext(aiter(stream.chunks))
        await asyncio.sleep(0.3)
        assert bench.alive == [0]  # it answers, so it lives
        engine.frozen = True
        with pytest.raises(EngineError):
            async for _ in stream.chunks:
                pass
        await until(lambda: bench.alive == [1])
        assert [event["why"] for event in bench.events("engine.stopped")] == ["frozen"]
        assert bench.pool.restarts == 1
        bench.started[1].script = lambda *_: Answer()
        assert await bench.ask() == 1


async def test_one_late_answer_is_no_freezing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "PROBE_EVERY_S", 0.02)
    monkeypatch.setattr(member_module, "MISSES", 1000)
    async with running(probe_s=0.02) as bench:
        bench.engine.frozen = True
        await asyncio.sleep(0.2)
        bench.engine.frozen = False
        await quiet(lambda: bench.alive == [0])
        assert await bench.ask() == 0


async def test_an_engine_that_owes_answers_and_says_nothing_is_replaced() -> None:
    engine = Noting(script=lambda *_: Answer(stall_after=2), recyclable=True, slots=4)
    async with running(engine=engine, stall_s=0.2) as bench:
        stalled = await bench.open()
        with pytest.raises(EngineError):
            async for _ in stalled.chunks:
                pass
        await until(lambda: bench.alive == [1])
        assert [event["why"] for event in bench.events("engine.stopped")] == ["silent"]


async def _one_answer(bench: Bench, *, whole: bool) -> bytes:
    request = EngineRequest(path=CHAT_COMPLETIONS, body=b"{}", whole=whole)
    return await (await bench.pool.send(request)).read(1 << 20)


@pytest.mark.parametrize("late", ["head", "body"])
async def test_an_answer_that_comes_whole_is_no_silence_while_it_is_computed(late: str) -> None:
    class Late(Noting):
        async def send(self, request: EngineRequest) -> EngineResponse:
            if request.path == CHAT_COMPLETIONS and late == "head":
                await asyncio.sleep(0.5)
            return await super().send(request)

    delay = 0.5 if late == "body" else 0.0
    engine = Late(script=lambda *_: Answer(delay=delay), recyclable=True, slots=4)
    async with running(engine=engine, stall_s=0.1) as bench:
        assert b"word31" in await _one_answer(bench, whole=True)
        assert bench.alive == [0]
        with pytest.raises(EngineError):  # the same silence of an engine that owes pieces
            await _one_answer(bench, whole=False)
        await until(lambda: 0 not in bench.alive)


async def test_an_engine_that_owes_whole_answers_for_longer_than_they_may_take_is_replaced() -> (
    None
):
    engine = Noting(script=lambda *_: Answer(stall_after=0), recyclable=True, slots=4)
    async with running(engine=engine, stall_s=0.1, generation_s=0.1) as bench:
        with pytest.raises(EngineError):
            await _one_answer(bench, whole=True)
        await until(lambda: bench.alive == [1])
        assert [event["why"] for event in bench.events("engine.stopped")] == ["silent"]


async def test_an_engine_that_could_not_be_asked_is_not_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member_module, "PROBE_EVERY_S", 0.01)

    class Unasked(Noting):
        async def send(self, request: EngineRequest) -> EngineResponse:
            if request.path == HEALTH:
                raise EngineError("not asked", code=code)
            return await super().send(request)

    code = NO_DESCRIPTOR
    async with running(engine=Unasked(recyclable=True, slots=4)) as bench:
        await quiet(lambda: bench.alive == [0], ticks=30)
        code = STOPPED
        await until(lambda: not bench.engine.alive)
        assert {event["why"] for event in bench.events("engine.stopped")} == {"frozen"}


async def test_a_client_that_does_not_read_is_not_the_engines_silence() -> None:
    async with running(stall_s=0.1) as bench:
        unread = await bench.open()
        await anext(aiter(unread.chunks))
        await quiet(lambda: bench.alive == [0], ticks=40)
        async for _ in unread.chunks:
            pass


async def test_an_engine_heard_by_one_client_is_not_silent() -> None:
    def script(_: str, body: Any) -> Answer:
        return Answer(stall_after=1) if body.get("stall") else Answer(rate=50, tokens=("x",) * 100)

    engine = Noting(script=script, recyclable=True, slots=4)
    async with running(engine=engine, stall_s=1.5) as bench:
        body = b'{"stream":true,"stall":true}'
        stalled = await bench.pool.send(EngineRequest(path=CHAT_COMPLETIONS, body=body))
        bench.answers.append(stalled)
        reading = asyncio.create_task(stalled.read(1 << 20))
        assert await bench.ask() == 0
        assert bench.alive == [0]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_waiting_requests_are_served_after_a_restart() -> None:
    async with running() as bench:
        for name in "aaab":
            await bench.open(name)
        waiting = asyncio.create_task(bench.ask("c"))
        await quiet(lambda: not waiting.done())
        bench.engine.crash()
        for response in list(bench.answers):
            await response.aclose()
        assert await waiting == 1


async def test_a_fresh_process_takes_over_at_once() -> None:
    async with running(dataclasses.replace(OFF, max_processes=2, warm=1)) as bench:
        await bench.ask()
        await until(lambda: bench.alive == [0, 1])
        bench.engine.crash()
        await until(lambda: bool(bench.events("engine.stopped")))
        assert bench.pool.ready
        assert await bench.ask() == 1


async def test_closing_while_a_process_starts_leaves_none() -> None:
    engine = Slow(recyclable=True, slots=4)
    async with running(dataclasses.replace(OFF, warm=1), engine=engine) as bench:
        engine.hold.clear()
        await bench.ask()
        await until(lambda: len(bench.started) == 2)


async def test_a_worker_does_not_begin_without_an_engine() -> None:
    with pytest.raises(EngineError):
        async with running(engine=Noting(fail_starts=1, recyclable=True)):
            raise AssertionError
