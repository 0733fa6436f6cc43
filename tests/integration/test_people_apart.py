"""People who use the same worker, and an engine that hands one's words to the other."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.protocol import EngineRequest, EngineResponse
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.settings import (
    Limits,
    RateLimit,
    Separation,
    SeparationMode,
    WorkerSettings,
)
from support.asgi import Call
from support.sealed import chat, until
from support.worker import Bench, running

MARKER = "the-marker-of-alice"
ALICE, BOB = os.urandom(32), os.urandom(32)
SHARED = Separation()
EACH = Separation(recycle_requests=1, max_processes=4)
PER_CLIENT = Separation(mode=SeparationMode.PER_CLIENT, max_processes=4)


@dataclasses.dataclass(slots=True, kw_only=True)
class Gossip(FakeEngine):
    """Answers everybody with all that its process has ever heard."""

    heard: list[str] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.recyclable = True
        self.script = self._gossip
        FakeEngine.__post_init__(self)

    def _gossip(self, _: str, body: Mapping[str, Any]) -> Answer:
        self.heard.append(body["messages"][0]["content"])
        return Answer.text(" ".join(self.heard))


async def said(bench: Bench, text: str, **who: Any) -> str:
    inner = await bench.peer.ask(document=chat(text, stream=True), **who)
    assert inner.status == 200
    return inner.text


def settings(separation: Separation, **limits: Any) -> WorkerSettings:
    return WorkerSettings(
        separation=separation,
        limits=dataclasses.replace(Limits(drain_s=0.01), **limits),
        rate=RateLimit(per_minute=0, burst=1),
    )


# -- a hostile engine -----------------------------------------------------------------------------


async def test_a_shared_process_can_tell_one_persons_words_to_another() -> None:
    """What the shared mode does not keep apart: this is why the configuration says so."""
    async with running(settings(SHARED), engine=Gossip()) as bench:
        await said(bench, MARKER, cache_secret=ALICE)
        assert MARKER in await said(bench, "hello", cache_secret=BOB)
        assert MARKER in await said(bench, "hello")


async def test_processes_of_their_own_have_nothing_to_tell() -> None:
    async with running(settings(PER_CLIENT), engine=Gossip()) as bench:
        for _ in range(3):
            await said(bench, MARKER, cache_secret=ALICE)
            assert MARKER not in await said(bench, "hello", cache_secret=BOB)
            assert MARKER not in await said(bench, "hello")
        # It is the same engine: what she said herself, it repeats to her.
        assert MARKER in await said(bench, "hello", cache_secret=ALICE)
        # Who sends no secret is not recognised, not even as the one who asked just before.
        await said(bench, "unrecognised")
        assert "unrecognised" not in await said(bench, "hello")


async def test_a_process_for_each_request_has_nothing_to_tell_either() -> None:
    async with running(settings(EACH), engine=Gossip()) as bench:
        assert MARKER in await said(bench, MARKER, cache_secret=ALICE)
        for who in ({"cache_secret": ALICE}, {"cache_secret": BOB}, {}):
            assert MARKER not in await said(bench, "hello", **who)


async def test_many_at_once_hear_only_themselves() -> None:
    engine = Gossip(slots=8)
    async with running(settings(PER_CLIENT), engine=engine) as bench:
        secrets = [os.urandom(32) for _ in range(8)]

        async def talk(number: int) -> None:
            for turn in range(4):
                text = await said(bench, f"[{number}:{turn}]", cache_secret=secrets[number])
                assert {word.partition(":")[0] for word in text.split()} == {f"[{number}"}

        await asyncio.gather(*(talk(number) for number in range(8)))
        assert len(engine.family) > 8  # there are four processes at a time, so they were exchanged
        for process in engine.family:
            assert isinstance(process, Gossip)
            assert len({word.partition(":")[0] for word in process.heard}) <= 1


async def test_a_stolen_cache_secret_is_no_way_into_a_process(tmp_path: Path) -> None:
    table = tmp_path / "keys.json"
    alice, bob = (ApiKeyFile(table).add(name, at=0)[1] for name in ("alice", "bob"))
    async with running(settings(PER_CLIENT), engine=Gossip(), api_keys=table) as bench:
        await said(bench, MARKER, api_key=alice, cache_secret=ALICE)
        assert MARKER in await said(bench, "hello", api_key=alice, cache_secret=ALICE)
        assert MARKER not in await said(bench, "hello", api_key=bob, cache_secret=ALICE)


# -- fair scheduling ------------------------------------------------------------------------------


def story(_: str, body: Mapping[str, Any]) -> Answer:
    return Answer.text(body["messages"][0]["content"])


@dataclasses.dataclass(slots=True, kw_only=True)
class Held(FakeEngine):
    """Its long answers begin, and end one by one as the test lets them: no machine is too slow."""

    ends: asyncio.Semaphore = dataclasses.field(
        default_factory=lambda: asyncio.Semaphore(0), init=False
    )

    async def send(self, request: EngineRequest) -> EngineResponse:
        answer = await FakeEngine.send(self, request)
        if b'"long"' not in request.body:
            return answer
        chunks = self._held(answer)
        return EngineResponse(
            status=answer.status,
            content_type=answer.content_type,
            chunks=chunks,
            close=chunks.aclose,
        )

    async def _held(self, answer: EngineResponse) -> AsyncGenerator[bytes]:
        try:
            yield await anext(aiter(answer.chunks))
            await self.ends.acquire()
            async for chunk in answer.chunks:
                yield chunk
        finally:
            await answer.aclose()


def flood(bench: Bench, count: int, **who: Any) -> list[Call]:
    return [
        bench.peer.start(bench.peer.seal(document=chat("long", stream=True), **who))
        for _ in range(count)
    ]


async def end(calls: list[Call]) -> None:
    for call in calls:
        call.gone.set()
    for call in calls:
        await call.result()


async def served_next(bench: Bench, engine: Held, calls: list[Call], **who: Any) -> None:
    """Somebody else is answered once one of the long answers has ended, if not before."""
    asking = asyncio.create_task(said(bench, "short", **who))
    await until(lambda: bench.worker.context.generations == 101 or asking.done())
    engine.ends.release()
    assert await asking == "short"
    assert sum(not call.task.done() for call in calls) >= 99


@pytest.mark.parametrize("slots", [1, 2, 8])
async def test_a_hundred_streams_do_not_starve_one(slots: int) -> None:
    engine = Held(script=story, slots=slots)
    async with running(settings(SHARED), engine=engine) as bench:
        calls = flood(bench, 100, cache_secret=ALICE)
        await until(lambda: bench.worker.context.generations == 100)
        await until(lambda: bool(engine.requests))
        await served_next(bench, engine, calls, cache_secret=BOB)
        assert all(call.outer.status in (0, 200) for call in calls)
        await end(calls)
        assert engine.running == 0
        assert bench.worker.context.generations == 0


async def test_whose_many_names_have_one_key_is_one(tmp_path: Path) -> None:
    table = tmp_path / "keys.json"
    many, few = (ApiKeyFile(table).add(name, at=0)[1] for name in ("many", "few"))
    engine = Held(script=story, slots=1)
    async with running(settings(SHARED), engine=engine, api_keys=table) as bench:
        calls = []
        for _ in range(100):
            calls += flood(bench, 1, api_key=many, cache_secret=os.urandom(32))
        await until(lambda: bench.worker.context.generations == 100)
        await served_next(bench, engine, calls, api_key=few)
        await end(calls)


async def test_the_queue_is_bounded_and_nobody_has_all_of_it() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=1), slots=8)
    async with running(settings(SHARED, max_generations=8), engine=engine) as bench:
        calls = flood(bench, 4, cache_secret=ALICE)
        await until(lambda: bench.worker.context.generations == 4)
        refused = await bench.peer.ask(document=chat(), cache_secret=ALICE, idempotency_key="k")
        assert (refused.status, refused.error["code"]) == (503, "at_capacity")
        engine.script = story
        assert await said(bench, "short", cache_secret=BOB) == "short"
        await end(calls)
        again = await bench.peer.ask(document=chat(), cache_secret=ALICE, idempotency_key="k")
        assert again.status == 200


async def test_whoever_waits_too_long_is_told_and_may_ask_again() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=1), slots=1)
    async with running(settings(SHARED, queue_s=0.1), engine=engine) as bench:
        calls = flood(bench, 1, cache_secret=ALICE)
        await until(lambda: engine.running == 1)
        refused = await bench.peer.ask(document=chat(), cache_secret=BOB, idempotency_key="k")
        assert (refused.status, refused.error["code"]) == (503, "at_capacity")
        assert refused.headers["retry-after"] == "1"
        assert len(engine.requests) == 1
        await end(calls)
        engine.script = story
        again = await bench.peer.ask(document=chat(), cache_secret=BOB, idempotency_key="k")
        assert again.status == 200


async def test_those_who_leave_the_queue_leave_nothing() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=1), slots=2)
    async with running(settings(SHARED), engine=engine) as bench:
        calls = flood(bench, 30, cache_secret=ALICE)
        await until(lambda: bench.worker.context.generations == 30)
        await end(calls[1:])
        await end(calls[:1])
        assert bench.worker.context.generations == 0
        assert engine.running == 0
        engine.script = story
        assert await said(bench, "short", cache_secret=ALICE) == "short"


async def test_what_comes_whole_is_said_to_whoever_judges_an_engine_by_its_silence() -> None:
    engine = FakeEngine()
    async with running(engine=engine) as bench:
        for stream in (True, False):
            assert (await bench.peer.ask(document=chat("hello", stream=stream))).status == 200
        embedding = {"model": "fake", "input": "hello"}
        assert (await bench.peer.ask("/v1/embeddings", document=embedding)).status == 200
        assert [request.whole for request in engine.requests] == [False, True, True]
