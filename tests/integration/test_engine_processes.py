"""The pool with the embedded engine: what stays in memory, for how long, and what is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator

import pytest

from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import resolve_model
from cloister.engine.protocol import CHAT_COMPLETIONS, EngineRequest, EngineResponse
from cloister.engine.sandbox import Sandbox
from cloister.errors import EngineError
from cloister.worker.logs import EventLog
from cloister.worker.member import Member
from cloister.worker.metrics import Metrics
from cloister.worker.pool import EnginePool
from cloister.worker.settings import Limits, Separation, SeparationMode
from support.memory import children, count_in_all
from support.processes import processes

pytestmark = pytest.mark.sandbox

OFF = Separation(recycle_requests=0, recycle_idle_s=0, recycle_age_s=0)
PER_CLIENT = dataclasses.replace(OFF, mode=SeparationMode.PER_CLIENT, max_processes=3)
WAIT_S = 60.0


class Clock:
    """Stands still but for what a test adds, so that no bound is reached by a slow machine; and
    tells no time twice, so that what was used last is known."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


@dataclasses.dataclass(slots=True, kw_only=True)
class Bench:
    pool: EnginePool
    clock: Clock
    log: io.StringIO

    def members(self) -> list[Member]:
        return list(self.pool._members)

    def only(self) -> tuple[Member, set[int]]:
        """The one engine there is, and its processes. No other is on its way either."""
        assert self.pool.processes == 1
        (member,) = self.members()
        return member, self.pids(member)

    def pids(self, member: Member) -> set[int]:
        assert isinstance(member.engine, LlamaEngine)
        assert member.engine._confined is not None
        return set(processes(member.engine._confined.pid))

    async def send(self, text: str, client: str | None, **more: object) -> EngineResponse:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
        request = EngineRequest(
            path=CHAT_COMPLETIONS, body=json.dumps(body).encode(), client=client
        )
        return await self.pool.send(request, asker=client or secrets.token_hex(4))

    async def ask(self, text: str, client: str | None = None) -> dict[str, object]:
        response = await self.send(text, client)
        answer: dict[str, object] = json.loads(await response.read(1 << 20))
        assert response.status == 200
        return answer

    async def reused(self, text: str, client: str | None = None) -> object:
        timings = (await self.ask(text, client))["timings"]
        assert isinstance(timings, dict)
        assert timings["prompt_n"] > 40
        return timings["cache_n"]


@contextlib.asynccontextmanager
async def running(separation: Separation, **limits: float) -> AsyncIterator[Bench]:
    clock, log = Clock(), io.StringIO()
    engine = LlamaEngine(
        resolve_model("demo"),
        isolation=Sandbox(),
        settings=LlamaSettings(parallel=2, threads=1, embeddings=False),
    )
    pool = EnginePool(
        engine,
        EventLog(log),
        separation=separation,
        limits=dataclasses.replace(Limits(), **limits),  # type: ignore[arg-type]  # ints where ints are due
        steady=clock,
        metrics=Metrics(),
        tick_s=0.05,
    )
    await pool.start()
    try:
        yield Bench(pool=pool, clock=clock, log=log)
    finally:
        await pool.aclose()


async def gone(marker: bytes, *, but: set[int] = frozenset()) -> bool:  # type: ignore[assignment]  # read only
    """Whether the marker leaves the memory of every engine process."""
    async with asyncio.timeout(WAIT_S):
        while count_in_all(children() - but, marker):
            await asyncio.sleep(0.2)
    return True


async def ended(bench: Bench, member: Member, pids: set[int]) -> bool:
    """Whether an engine ends, with every process of its."""
    async with asyncio.timeout(WAIT_S):
        while member in bench.members() or pids & children():
            await asyncio.sleep(0.05)
    return True


def stays(marker: bytes) -> bool:
    """Whether the marker stands in the memory of an engine process: to be asked right after the
    request that brought it, since a later one may overwrite what was freed."""
    return count_in_all(children(), marker) > 0


@pytest.fixture
def marker() -> str:
    return secrets.token_hex(16)


def words(marker: str) -> str:
    """A prompt that holds the marker often: an engine frees the copies that it made of a prompt, so
    which of them stand in its memory after the answer is its allocator's business."""
    return " ".join([marker] * 12)


# -- what stays ---------------------------------------------------------------------------------


async def test_a_prompt_stays_in_an_engine_that_is_not_exchanged(marker: str) -> None:
    async with running(OFF) as bench:
        await bench.ask(words(marker))
        assert stays(marker.encode())
        before = bench.only()
        bench.clock.now += 1e6
        await asyncio.sleep(0.5)
        await bench.ask("another day")
        assert bench.only() == before
    assert await gone(marker.encode())


async def test_nothing_stays_after_as_many_requests_as_were_said(marker: str) -> None:
    async with running(dataclasses.replace(OFF, recycle_requests=3)) as bench:
        await bench.ask(words(marker))
        assert stays(marker.encode())
        member, pids = bench.only()
        await bench.ask("two")
        assert member in bench.members()
        await bench.ask("three")
        assert await gone(marker.encode())
        assert await ended(bench, member, pids)
        await bench.ask("four")


async def test_nothing_stays_when_the_engine_was_unused(marker: str) -> None:
    async with running(dataclasses.replace(OFF, recycle_idle_s=60)) as bench:
        await bench.ask(words(marker))
        assert stays(marker.encode())
        member, pids = before = bench.only()
        bench.clock.now += 50
        await asyncio.sleep(0.5)
        assert bench.only() == before
        bench.clock.now += 11
        assert await gone(marker.encode())
        assert await ended(bench, member, pids)
        assert bench.pool.ready


async def test_nothing_stays_longer_than_was_said(marker: str) -> None:
    async with running(dataclasses.replace(OFF, recycle_age_s=100)) as bench:
        await bench.ask(words(marker))
        assert stays(marker.encode())
        member, pids = before = bench.only()
        bench.clock.now += 90
        await asyncio.sleep(0.5)
        await bench.ask("never idle")
        assert bench.only() == before
        bench.clock.now += 11
        assert await gone(marker.encode())
        assert await ended(bench, member, pids)


async def test_nothing_stays_after_a_request_with_a_process_of_its_own(marker: str) -> None:
    async with running(dataclasses.replace(OFF, recycle_requests=1)) as bench:
        response = await bench.send(words(marker), None, stream=True, max_tokens=200)
        await anext(aiter(response.chunks))
        assert stays(marker.encode())
        await response.aclose()
        assert await gone(marker.encode())


async def test_nobodys_words_reach_the_process_of_another(marker: str) -> None:
    async with running(PER_CLIENT) as bench:
        await bench.ask(words(marker), "alice")
        assert stays(marker.encode())
        (hers,) = bench.members()
        await bench.ask("something else", "bob")
        assert len(bench.members()) == 2
        assert hers in bench.members()
        assert await gone(marker.encode(), but=bench.pids(hers))
        # Without a cache secret, nothing outlasts the answer.
        unknown = secrets.token_hex(16)
        await bench.ask(words(unknown))
        assert await gone(unknown.encode())
        # Two newcomers, and her process has made room.
        await bench.ask("hello", "carol")
        await bench.ask("hello", "dave")
        assert await gone(marker.encode())


@pytest.mark.parametrize(
    "separation", [OFF, dataclasses.replace(OFF, recycle_requests=1), PER_CLIENT]
)
async def test_nothing_one_client_sent_is_reused_for_another(separation: Separation) -> None:
    same = "What is a TEE? " * 8
    async with running(separation) as bench:
        for client in ("alice", "bob", "alice", None, None):
            assert await bench.reused(same, client) == 0


# -- what is noticed ----------------------------------------------------------------------------


async def test_a_busy_engine_says_that_it_is_there() -> None:
    """Looked at while it computes: every look is answered, so that no busy engine is ended."""
    async with running(OFF) as bench:
        (member,) = bench.members()
        streams = [
            await bench.send("Tell me a story.", name, stream=True, max_tokens=400, ignore_eos=True)
            for name in ("a", "b")
        ]
        for _ in range(10):
            pieces = [await anext(aiter(stream.chunks)) for stream in streams]
            assert all(pieces)
            assert await member._answers(WAIT_S)
        for stream in streams:
            await stream.aclose()


async def test_a_stopped_engine_is_ended_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloister.worker.member.PROBE_EVERY_S", 0.2)
    async with running(OFF, probe_s=2.0) as bench:
        (member,) = bench.members()
        stream = await bench.send("Story", "a", stream=True, max_tokens=400, ignore_eos=True)
        chunks = aiter(stream.chunks)
        await anext(chunks)
        # Its successor is not to count as frozen too, on a machine that is busy.
        bench.pool._limits = dataclasses.replace(bench.pool._limits, probe_s=WAIT_S)
        frozen = bench.pids(member)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineError):
            async with asyncio.timeout(WAIT_S):
                while True:
                    await anext(chunks)
        await stream.aclose()
        async with asyncio.timeout(WAIT_S):
            while not bench.pool.ready:
                await asyncio.sleep(0.05)
        assert "choices" in await bench.ask("Are you there?", "b")
        lines = [json.loads(line) for line in bench.log.getvalue().splitlines()]
        assert [line["why"] for line in lines if line["event"] == "engine.stopped"] == ["frozen"]
        async with asyncio.timeout(WAIT_S):
            while frozen & children():
                await asyncio.sleep(0.05)
        assert not [line for line in lines if line["event"] == "engine.end_failed"]
