"""The pool of engine processes: exchanged in time and before they are missed, and who is next."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import time
from typing import Any

import pytest

from cloister.engine.protocol import CHAT_COMPLETIONS, EngineRequest, EngineResponse
from cloister.errors import ConfigurationError, EngineError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.pool import EnginePool
from cloister.worker.settings import Limits, Separation
from support.pool import OFF, PER_CLIENT, Bench, Noting, Slow, quiet, running
from support.sealed import until

# -- shared -------------------------------------------------------------------------------------


async def test_without_bounds_one_process_serves_everybody() -> None:
    async with running() as bench:
        assert [await bench.ask(client) for client in ("a", "b", None)] == [0, 0, 0]
        bench.clock.ahead += 1e6
        await quiet(lambda: bench.alive == [0])


async def test_a_process_is_exchanged_after_its_requests_and_its_successor_is_there_before() -> (
    None
):
    separation = dataclasses.replace(OFF, recycle_requests=20)
    async with running(separation) as bench:
        assert [await bench.ask() for _ in range(17)] == [0] * 17
        await quiet(lambda: bench.alive == [0])
        assert await bench.ask() == 0
        await until(lambda: bench.alive == [0, 1])  # two requests early, and unused
        assert [await bench.ask() for _ in range(3)] == [0, 0, 1]
        await until(lambda: bench.alive == [1])
        assert [event["why"] for event in bench.events("engine.recycled")] == ["requests"]
        assert bench.pool.restarts == 0


async def test_an_old_process_ends_with_its_last_answer() -> None:
    separation = dataclasses.replace(OFF, recycle_requests=2)
    async with running(separation) as bench:
        slow = await bench.open()
        await until(lambda: bench.alive == [0, 1])
        assert await bench.ask() == 0
        assert await bench.ask() == 1
        await quiet(lambda: 0 in bench.alive)
        pieces = [piece async for piece in slow.chunks]
        assert pieces[-1] == b"data: [DONE]\n\n"
        await until(lambda: 0 not in bench.alive)


async def test_an_unused_process_is_exchanged_and_the_next_is_there_before_it_ends() -> None:
    separation = dataclasses.replace(OFF, recycle_idle_s=60)
    engine = Slow(recyclable=True, slots=4)
    async with running(separation, engine=engine) as bench:
        bench.clock.ahead += 1000
        await quiet(lambda: bench.alive == [0])  # it has served nothing: nothing to forget
        assert await bench.ask() == 0
        bench.clock.ahead += 59
        await quiet(lambda: len(bench.started) == 1)
        engine.hold.clear()
        bench.clock.ahead += 1.5
        await until(lambda: len(bench.started) == 2)
        await quiet(lambda: engine.alive)
        assert await bench.ask() == 0  # nobody waits; and now it is not unused
        engine.hold.set()
        await quiet(lambda: engine.alive)
        bench.clock.ahead += 60
        await until(lambda: bench.alive == [1])
        assert await bench.ask() == 1


async def test_an_answer_in_progress_is_not_idleness() -> None:
    separation = dataclasses.replace(OFF, recycle_idle_s=60)
    async with running(separation) as bench:
        slow = await bench.open()
        bench.clock.ahead += 1000
        await quiet(lambda: bench.alive == [0])
        await slow.aclose()
        await quiet(lambda: bench.alive == [0])
        bench.clock.ahead += 61
        await until(lambda: bench.alive == [1])


async def test_a_process_that_is_never_idle_is_exchanged_by_its_age() -> None:
    separation = dataclasses.replace(OFF, recycle_age_s=100)
    async with running(separation) as bench:
        slow = await bench.open()
        bench.clock.ahead += 60
        assert await bench.ask() == 0
        bench.clock.ahead += 41
        await until(lambda: 1 in bench.alive)
        assert await bench.ask() == 1
        assert 0 in bench.alive
        await slow.aclose()
        await until(lambda: bench.alive == [1])


async def test_an_answer_without_end_does_not_keep_an_old_process() -> None:
    separation = dataclasses.replace(OFF, recycle_requests=2)
    engine = Noting(script=lambda *_: Answer(stall_after=1), recyclable=True, slots=4)
    async with running(separation, engine=engine, generation_s=100, send_s=10) as bench:
        endless = await bench.open()
        await bench.open()
        bench.clock.ahead += 109
        await quiet(lambda: 0 in bench.alive)
        bench.clock.ahead += 2
        with pytest.raises(EngineError):
            async for _ in endless.chunks:
                pass
        assert 0 not in bench.alive


async def test_each_request_can_have_a_process_of_its_own() -> None:
    separation = dataclasses.replace(OFF, recycle_requests=1, max_processes=3)
    async with running(separation) as bench:
        assert [await bench.ask() for _ in range(4)] == [0, 1, 2, 3]
        slow = [await bench.open("a"), await bench.open("b")]
        assert sorted(bench.served[-2:]) == [4, 5]
        third = asyncio.create_task(bench.ask("c"))
        await until(lambda: len(bench.alive) == 3)
        assert await third == 6
        for one in slow:
            await one.aclose()
        await until(lambda: bench.alive == [len(bench.started) - 1])
        assert not bench.started[-1].requests


@pytest.mark.parametrize(
    "bound", [{"recycle_requests": 1}, {"recycle_idle_s": 60}, {"recycle_age_s": 60}]
)
async def test_where_only_one_fits_requests_wait_for_the_exchange(bound: dict[str, int]) -> None:
    separation = dataclasses.replace(OFF, max_processes=1, **bound)  # type: ignore[arg-type]  # counts, all of them
    engine = Slow(recyclable=True, slots=4)
    async with running(separation, engine=engine) as bench:
        assert await bench.ask() == 0
        engine.hold.clear()
        bench.clock.ahead += 61
        await until(lambda: not bench.alive)
        assert bench.pool.ready
        waiting = asyncio.create_task(bench.ask())
        await until(lambda: len(bench.started) == 2)
        assert not waiting.done()
        engine.hold.set()
        assert await waiting == 1
        assert not bench.events("engine.stopped")


async def test_a_bound_holds_when_no_successor_can_be_started() -> None:
    separation = dataclasses.replace(OFF, recycle_idle_s=60)
    async with running(separation) as bench:
        assert await bench.ask() == 0
        bench.engine.fail_starts = 1  # inherited by the sibling, whose start fails
        bench.clock.ahead += 61
        await until(lambda: not bench.engine.alive)
        bench.engine.fail_starts = 0
        await until(lambda: bench.pool.ready)
        assert bench.events("engine.start_failed")
        await bench.ask()


async def test_a_fault_of_our_own_at_a_start_is_a_start_that_failed() -> None:
    class Faulty(Noting):
        async def start(self) -> None:
            if self is not self.family[0] and not mended:
                self.starts += 1
                raise RuntimeError("a fault")
            await super().start()

        async def aclose(self) -> None:
            await super().aclose()
            if not mended:
                raise RuntimeError("another")

    mended = False
    async with running(
        dataclasses.replace(OFF, recycle_idle_s=60), engine=Faulty(recyclable=True, slots=4)
    ) as bench:
        await bench.ask()
        bench.clock.ahead += 61
        await until(lambda: len(bench.events("engine.start_failed")) >= 2)
        assert not bench.pool.ready
        with pytest.raises(EngineError):
            await bench.open()
        mended = True
        await until(lambda: bench.pool.ready)
        await until(lambda: bench.pool.processes == 1)
        await bench.ask()


async def test_long_answers_in_processes_that_were_retired_keep_nobody_waiting_for_ever() -> None:
    """A few long answers and many short ones, of one client, would be enough for that."""
    engine = Noting(script=_long_or_short, recyclable=True, slots=4)
    separation = dataclasses.replace(OFF, recycle_requests=4)
    async with running(separation, engine=engine, queue_s=100) as bench:
        long = [await _long(bench)]
        for _ in range(3):
            assert await bench.ask() == 0
        long.append(await _long(bench))
        for _ in range(3):
            assert await bench.ask() == 1
        waiting = asyncio.create_task(bench.ask())
        await quiet(lambda: bench.alive == [0, 1] and not waiting.done())
        bench.clock.ahead += 51
        assert await waiting == 2
        assert bench.alive == [1, 2]  # that which was retired last still has its time
        assert [event["why"] for event in bench.events("engine.recycled")][-1] == "room"
        assert not bench.events("engine.stopped")
        with pytest.raises(EngineError):
            await long[0].read(1 << 20)


async def test_where_nobody_waits_long_answers_have_their_time() -> None:
    engine = Noting(script=_long_or_short, recyclable=True, slots=4)
    async with running(dataclasses.replace(OFF, recycle_requests=4), engine=engine) as bench:
        for process in (0, 1):
            bench.answers.append(await _long(bench))
            assert [await bench.ask() for _ in range(3)] == [process] * 3
        bench.clock.ahead += 600
        await quiet(lambda: bench.alive == [0, 1])


async def test_long_answers_with_processes_of_their_own_have_their_time() -> None:
    engine = Noting(script=_long_or_short, recyclable=True, slots=4)
    async with running(dataclasses.replace(OFF, recycle_requests=1), engine=engine) as bench:
        for asker in ("a", "b"):
            bench.answers.append(await _long(bench, asker))
        waiting = asyncio.create_task(bench.ask(asker="c"))
        await asyncio.sleep(0.05)
        bench.clock.ahead += 600
        await quiet(lambda: bench.alive == [0, 1])
        await bench.answers[0].aclose()
        assert await waiting == 2


def _long_or_short(_: str, body: Any) -> Answer:
    return Answer(stall_after=1) if body.get("long") else Answer()


async def _long(bench: Bench, asker: str = "someone") -> EngineResponse:
    body = b'{"stream":true,"long":true}'
    request = EngineRequest(path=CHAT_COMPLETIONS, body=body)
    return await bench.pool.send(request, asker=asker)


async def test_what_is_one_process_cannot_be_promised_to_be_several() -> None:
    def make(separation: Separation) -> EnginePool:
        return EnginePool(
            FakeEngine(),
            EventLog(io.StringIO()),
            separation=separation,
            limits=Limits(),
            steady=time.monotonic,
            metrics=Metrics(),
        )

    make(Separation.of_one_process())
    for separation in (Separation(), PER_CLIENT, OFF):
        with pytest.raises(ConfigurationError) as refused:
            make(separation)
        assert refused.value.code == "configuration.separation"


# -- who is next --------------------------------------------------------------------------------


async def test_no_more_is_computed_than_the_engine_has_places_and_one_is_kept_free() -> None:
    async with running() as bench:
        held = [await bench.open("a") for _ in range(3)]
        fourth = asyncio.create_task(bench.open("a"))
        await quiet(lambda: not fourth.done())
        await bench.open("b")  # there was a place for somebody new
        await quiet(lambda: not fourth.done())
        await held[0].aclose()
        await fourth


async def test_places_count_over_the_exchange() -> None:
    separation = dataclasses.replace(OFF, recycle_requests=2, max_processes=3)
    async with running(separation) as bench:
        held = [await bench.open(name) for name in "abcd"]
        assert bench.served == [0, 0, 1, 1]
        fifth = asyncio.create_task(bench.ask("e"))
        await quiet(lambda: not fifth.done())
        await held[0].aclose()
        assert await fifth == 2


@pytest.mark.parametrize("way", ["read", "closed", "cancelled", "failed"])
async def test_a_place_comes_back_however_an_answer_ends(way: str) -> None:
    engine = Noting(script=lambda *_: Answer(crash_after=3 if way == "failed" else None), slots=1)
    async with running(Separation.of_one_process(), engine=engine) as bench:
        for _ in range(5):
            await until(lambda: bench.pool.ready)
            response = await bench.open()
            if way == "closed":
                await response.aclose()
            elif way == "cancelled":
                reading = asyncio.create_task(response.read(1 << 20))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            else:
                with contextlib.suppress(EngineError):
                    await response.read(1 << 20)
            await response.aclose()
        assert bench.pool._queue.running("someone") == 0
