"""The pool of engine processes: exchanged in time, before they are missed, and never shared."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Callable
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
from cloister.errors import ConfigurationError, EngineError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker import member as member_module
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.pool import AT_CAPACITY, EnginePool
from cloister.worker.settings import Limits, Separation, SeparationMode
from support.sealed import until

OFF = Separation(recycle_requests=0, recycle_idle_s=0, recycle_age_s=0)
PER_CLIENT = dataclasses.replace(OFF, mode=SeparationMode.PER_CLIENT)


class Clock:
    """A steady clock that the test turns."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


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


# -- a process for each client ------------------------------------------------------------------


async def test_clients_have_processes_of_their_own() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4)) as bench:
        assert [await bench.ask(name) for name in "aabba"] == [0, 0, 1, 1, 0]
        # Who cannot be recognised has one for each request, and it ends with it.
        assert [await bench.ask(None), await bench.ask(None)] == [2, 3]
        await until(lambda: bench.alive == [0, 1])


async def test_a_process_goes_from_nobody_to_anybody_else() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        order = [(name, await bench.ask(name)) for name in "abcabcbbaac"]
        owners: dict[int, str] = {}
        for name, process in order:
            assert owners.setdefault(process, name) == name
        assert len(bench.alive) <= 2


async def test_the_process_unused_for_longest_makes_room() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=3)) as bench:
        for name in "aba":
            await bench.ask(name)
        await bench.ask("c")
        assert bench.alive == [0, 1, 2]
        assert await bench.ask("d") == 3
        assert bench.alive == [0, 2, 3]


async def test_where_all_are_busy_a_newcomer_gets_the_next_place() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        first, second = await bench.open("a"), await bench.open("b")
        newcomer = asyncio.create_task(bench.ask("c"))
        await until(lambda: bool(bench.events("engine.recycled")))
        again = asyncio.create_task(bench.ask("a"))  # its process takes nothing more
        await quiet(lambda: not newcomer.done() and not again.done())
        await first.aclose()
        assert await newcomer == 2
        await second.aclose()
        assert await again == 3


async def test_a_newcomer_does_not_wait_for_ever() -> None:
    separation = dataclasses.replace(PER_CLIENT, max_processes=1)
    async with running(separation, queue_s=0.05) as bench:
        await bench.open("a")
        with pytest.raises(EngineError) as refused:
            await bench.ask("b")
        assert refused.value.code == AT_CAPACITY


async def test_one_asker_with_many_names_leaves_a_process_to_others() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=3)) as bench:
        for name in ("x1", "x2"):
            await bench.open(name, asker="x")
        third = asyncio.create_task(bench.ask(None, asker="x"))
        await quiet(lambda: not third.done())
        assert await bench.ask("y") == 2
        await bench.answers[0].aclose()
        await third


async def test_what_one_asker_may_not_have_is_taken_from_nobody() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4)) as bench:
        assert [await bench.ask(name) for name in "bcd"] == [0, 1, 2]
        many = [asyncio.create_task(bench.open(f"n{number}", "greedy")) for number in range(10)]
        await until(lambda: sum(one.done() for one in many) == 3)
        await quiet(lambda: sum(one.done() for one in many) == 3)
        assert await bench.ask("d") == 2  # used last, so those of the others made room
        for one in many:
            one.cancel()
        await asyncio.gather(*many, return_exceptions=True)


async def test_a_client_that_brings_its_process_down_delays_nobody() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        for _ in range(6):
            await bench.ask("vandal")
            bench.started[bench.served[-1]].crash()
            assert bench.pool.ready
            await bench.ask("vandal")
            assert bench.pool._not_before == 0


async def test_fresh_processes_are_kept_ready() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4, warm=2)) as bench:
        await until(lambda: bench.alive == [0, 1])
        assert await bench.ask("a") == 0
        await until(lambda: bench.alive == [0, 1, 2])
        assert [await bench.ask("b"), await bench.ask("a")] == [1, 0]


async def test_a_clients_process_has_the_same_bounds() -> None:
    separation = dataclasses.replace(
        PER_CLIENT, max_processes=4, recycle_requests=3, recycle_idle_s=60
    )
    async with running(separation) as bench:
        assert [await bench.ask("a") for _ in range(4)] == [0, 0, 0, 1]
        bench.clock.ahead += 61
        await until(lambda: not bench.alive)
        assert bench.pool.ready
        assert await bench.ask("a") == 2


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


# -- health -------------------------------------------------------------------------------------


async def test_a_frozen_engine_is_noticed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "PROBE_EVERY_S", 0.02)
    engine = Noting(script=lambda *_: Answer(rate=20), recyclable=True, slots=4)
    async with running(engine=engine, probe_s=0.02) as bench:
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
        return Answer(stall_after=1) if body.get("stall") else Answer(rate=50, tokens=("x",) * 40)

    engine = Noting(script=script, recyclable=True, slots=4)
    async with running(engine=engine, stall_s=0.3) as bench:
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
