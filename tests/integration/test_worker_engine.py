"""Engines that crash, refuse, stall or talk too much, and clients that leave."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from cloister.engine.protocol import NOT_RUNNING, EngineRequest, EngineResponse
from cloister.errors import EngineError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import Limits, WorkerSettings
from support.sealed import chat, check_receipt, until
from support.worker import Bench, running


def limits(**values: float) -> WorkerSettings:
    return WorkerSettings(limits=dataclasses.replace(Limits(), **values))  # type: ignore[arg-type]  # ints where ints are due


async def serves_again(bench: Bench) -> bool:
    await until(lambda: bench.worker.ready)
    bench.engine.script = lambda *_: Answer.text("fine")
    return (await bench.peer.ask(document=chat(stream=True))).text == "fine"


async def test_a_crash_ends_the_stream_with_an_authenticated_error() -> None:
    engine = FakeEngine(script=lambda *_: Answer(crash_after=3))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat(stream=True))
        assert inner.status == 200
        assert inner.text == " word0 word1 word2"
        assert inner.events[-1]["error"]["code"] == "engine_failed"
        assert "[DONE]" not in inner.events
        assert inner.receipt is not None
        assert await serves_again(bench)
        assert engine.starts == 2
        assert bench.events("engine.restarted")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_crash_before_the_first_token_is_a_502_and_is_not_retried(stream: bool) -> None:
    engine = FakeEngine(script=lambda *_: Answer(crash_after=0))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat(stream=stream), idempotency_key="k")
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")
        assert inner.headers["x-should-retry"] == "false"
        assert await serves_again(bench)


async def test_while_the_engine_is_down_the_idempotency_key_is_not_spent() -> None:
    engine = FakeEngine()
    async with running(engine=engine) as bench:
        engine.crash()
        inner = await bench.peer.ask(document=chat(), idempotency_key="k")
        assert (inner.status, inner.error["code"]) == (503, "engine_restarting")
        assert inner.headers["retry-after"] == "2"
        await until(lambda: bench.worker.ready)
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200


async def test_an_engine_that_will_not_start_is_tried_ever_more_patiently() -> None:
    engine = FakeEngine()
    async with running(engine=engine) as bench:
        engine.fail_starts = 2
        engine.crash()
        await until(lambda: bench.worker.ready)
        assert engine.starts == 4
        assert len(bench.events("engine.start_failed")) == 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (400, 400, "engine_refused"),
        (500, 502, "engine_failed"),
        (404, 502, "engine_failed"),
        (429, 503, "engine_busy"),
        (503, 503, "engine_busy"),
    ],
)
async def test_engine_errors_are_told_in_fixed_sentences(
    stream: bool, status: int, answer: int, code: str
) -> None:
    engine = FakeEngine(script=lambda *_: Answer(status=status))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat("canary", stream=stream))
        assert (inner.status, inner.error["code"]) == (answer, code)
        assert b"canary" not in inner.body
        assert inner.receipt is not None


async def test_an_engine_too_busy_to_begin_leaves_the_idempotency_key_unspent() -> None:
    engine = FakeEngine(script=lambda *_: Answer(status=503))
    async with running(engine=engine) as bench:
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 503
        engine.script = lambda *_: Answer.text("ok")
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200


class Gone(FakeEngine):
    """Alive to look at, and gone when it is sent something."""

    async def send(self, request: EngineRequest) -> EngineResponse:
        if len(self.requests) == 0:
            self.requests.append(request)
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        return await super().send(request)


async def test_an_engine_that_was_gone_leaves_the_idempotency_key_unspent() -> None:
    async with running(engine=Gone()) as bench:
        first = await bench.peer.ask(document=chat(), idempotency_key="k")
        assert (first.status, first.error["code"]) == (503, "engine_restarting")
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200


async def test_a_prompt_that_is_too_long_is_told_in_openais_words() -> None:
    engine = FakeEngine(script=lambda *_: Answer(status=400))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat("exceed_context_size_error canary"))
        assert (inner.status, inner.error["code"]) == (400, "context_length_exceeded")
        assert b"canary" not in inner.body


class Scripted(FakeEngine):
    """Sends the given reads, whatever they are."""

    reads: tuple[bytes, ...] = ()

    async def send(self, request: EngineRequest) -> EngineResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for read in type(self).reads:
                yield read

        async def close() -> None:
            return

        return EngineResponse(
            status=200, content_type="text/event-stream", chunks=chunks(), close=close
        )


async def stream_of(*reads: bytes) -> tuple[bytes, list[object]]:
    engine = type("One", (Scripted,), {"reads": reads})()
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat(stream=True))
    unpadded = b"".join(
        line for line in inner.body.splitlines(keepends=True) if not line.startswith(b":")
    )
    return unpadded, inner.events


async def test_an_error_event_of_the_engine_is_replaced() -> None:
    good = b'data: {"choices":[{"delta":{"content":"an \\"error\\" is not an error"}}]}\n\n'
    body, _ = await stream_of(good, good, b"data: [DONE]\n\n")
    assert body == good + good + b"data: [DONE]\n\n"
    for bad in (
        b'data: {"error":{"message":"canary"}}\n\n',
        b'data: { "error" : {"message":"canary"}}\n\n',
        b'data: {"code":500,"error":{"message":"canary"}}\n\n',
        b'data: {"object":"error","message":"canary"}\n\n',
        b'error: {"message":"canary"}\n\n',
        b'event: error\ndata: "canary"\n\n',
        b'data: {"error" canary\n\n',
    ):
        body, events = await stream_of(good, good + bad, b"data: [DONE]\n\n")
        assert body.startswith(good + good)
        assert b"canary" not in body, bad
        assert b"[DONE]" not in body
        assert events[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]


async def test_an_error_event_split_over_reads_is_replaced_too() -> None:
    bad = b'data: {"error":{"message":"canary"}}\n\n'
    for cut in range(1, len(bad)):
        body, _ = await stream_of(b"data: 1\n\n" + bad[:cut], bad[cut:])
        assert b"canary" not in body
        assert b"engine_failed" in body


async def test_events_split_anywhere_arrive_whole() -> None:
    event = b'data: {"choices":[{"delta":{"content":"split"}}]}\n\n'
    for cut in range(1, len(event)):
        body, _ = await stream_of(event[:cut], event[cut:] + event)
        assert body == event + event


async def test_a_stream_that_ends_in_the_middle_of_a_line() -> None:
    body, _ = await stream_of(b"data: 1\n\n", b"data: 2")
    assert body == b"data: 1\n\ndata: 2"


async def test_a_line_without_end_is_given_up() -> None:
    body, events = await stream_of(b"data: 1\n\n", b"x" * (1 << 20), b"x")
    assert len(body) < 4096
    assert events[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]


async def test_a_huge_event_is_sealed_in_several_chunks() -> None:
    engine = FakeEngine(script=lambda *_: Answer.huge(100_000))
    async with running(engine=engine) as bench:
        assert len((await bench.peer.ask(document=chat(stream=True))).text) == 100_000


# -- clients that leave, time that runs out ------------------------------------------------------


async def test_a_client_that_leaves_cancels_its_generation() -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 1000))
    async with running(engine=engine) as bench:
        call = bench.peer.start(bench.peer.seal(document=chat(stream=True)))
        await call.pieces(2)
        assert engine.running == 1
        call.gone.set()
        await call.result()
        await until(lambda: engine.running == 0)
        assert engine.cancelled == 1
        assert not call.outer.complete
        assert bench.worker.open_requests == 0
        assert bench.worker.context.generations == 0


async def test_a_client_that_leaves_before_the_first_token() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=0))
    async with running(engine=engine) as bench:
        call = bench.peer.start(bench.peer.seal(document=chat()))
        await until(lambda: engine.running == 1)
        call.gone.set()
        await call.result()
        assert engine.cancelled == 1


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.worker.gateway._SWEEP_S", 0.02)
    async with running(limits(send_s=0.05)) as bench:
        call = bench.peer.start(bench.peer.seal(document=chat(stream=True)))
        call.reading.clear()
        await call.result()
        assert not call.outer.complete
        await until(lambda: bench.worker.open_requests == 0)


@pytest.mark.parametrize("read_first", [0, 2])
async def test_time_runs_out_while_a_client_is_slow_to_read(read_first: int) -> None:
    async with running(limits(generation_s=0.2)) as bench:
        sealed = bench.peer.seal(document=chat(stream=True))
        call = bench.peer.start(sealed)
        await call.pieces(read_first)
        call.reading.clear()
        await asyncio.sleep(0.4)
        call.reading.set()
        inner = sealed.opened(await call.result())
        check_receipt(sealed, inner, bench.peer.keyset)
        assert inner.events[-1]["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [True, False])
async def test_time_runs_out(stream: bool) -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=2))
    async with running(limits(generation_s=1), engine=engine) as bench:
        sealed = bench.peer.seal(document=chat(stream=stream))
        async with asyncio.timeout(60):
            inner = sealed.opened(await bench.peer.send(sealed))
        check_receipt(sealed, inner, bench.peer.keyset)
        if stream:
            assert inner.text == " word0 word1"
            assert inner.events[-1]["error"]["code"] == "timeout"
        else:
            assert (inner.status, inner.error["code"]) == (504, "timeout")
        assert engine.running == 0
        assert await serves_again(bench)


async def test_a_graceful_stop_finishes_streams_in_flight() -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=100, tokens=("x",) * 20))
    async with running(engine=engine) as bench:
        sealed = bench.peer.seal(document=chat(stream=True))
        call = bench.peer.start(sealed)
        await call.pieces(2)
        stopping = asyncio.create_task(bench.worker.stop())
        await until(lambda: bench.worker.context.stopping)
        refused = await bench.peer.send(bench.peer.seal("/v1/models"))
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"5")
        inner = sealed.opened(await call.result())
        assert inner.text == "x" * 20
        assert inner.events[-1] == "[DONE]"
        await stopping


async def test_a_graceful_stop_does_not_wait_for_ever() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=2))
    async with running(limits(drain_s=0.1), engine=engine) as bench:
        sealed = bench.peer.seal(document=chat(stream=True))
        call = bench.peer.start(sealed)
        await call.pieces(2)
        await bench.worker.stop()
        inner = sealed.opened(await call.result())
        check_receipt(sealed, inner, bench.peer.keyset)
        assert inner.events[-1]["error"]["code"] == "stopping"
