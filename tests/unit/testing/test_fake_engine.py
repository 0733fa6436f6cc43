"""The fake engine: pace and faults, in process and as a server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.http_unix import HttpClient, UnixAddress
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    MODELS,
    NOT_RUNNING,
    STOPPED,
    TRUNCATED,
    Engine,
    EngineRequest,
)
from cloister.errors import EngineError
from cloister.testing.fake_engine import Answer, FakeEngine, serve

LIMIT = 1 << 24


def asked(path: str = CHAT_COMPLETIONS, /, **more: Any) -> EngineRequest:
    return EngineRequest(path=path, body=json.dumps({"messages": [], **more}).encode())


async def started(answer: Answer) -> FakeEngine:
    engine = FakeEngine(script=lambda _path, _body: answer)
    await engine.start()
    return engine


def events(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.decode().splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_shapes() -> None:
    engine = await started(Answer.text("a b c", stamp=True))
    whole = json.loads(await (await engine.send(asked())).read(LIMIT))
    assert whole["choices"][0]["message"]["content"] == "a b c"
    text = json.loads(await (await engine.send(asked(COMPLETIONS))).read(LIMIT))
    assert text["choices"][0]["text"] == "a b c"
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    stream = events(await (await engine.send(asked(**options))).read(LIMIT))
    deltas = [choice["delta"].get("content", "") for e in stream for choice in e["choices"]]
    assert "".join(deltas) == "a b c"
    assert stream[-1]["usage"]["completion_tokens"] == 3
    assert stream[0]["emitted_ns"] <= stream[1]["emitted_ns"]
    models = json.loads(await (await engine.send(EngineRequest(path=MODELS))).read(LIMIT))
    assert models["data"][0]["id"] == engine.model.name
    assert (engine.running, engine.cancelled, len(engine.requests)) == (0, 0, 4)


async def test_it_keeps_its_pace() -> None:
    engine = await started(Answer(tokens=("x",) * 20, rate=100, delay=0.05))
    begun = time.perf_counter()
    responses = [await engine.send(asked(stream=True)) for _ in range(4)]
    await asyncio.gather(*(response.read(LIMIT) for response in responses))
    assert time.perf_counter() - begun > 0.22  # it waits; how much longer is the machine's


async def test_faults() -> None:
    engine: Engine = await started(Answer(crash_after=2))
    got: list[bytes] = []
    with pytest.raises(EngineError) as caught:
        async for chunk in (await engine.send(asked(stream=True))).chunks:
            got.append(chunk)  # noqa: PERF401 - what came before the error is kept
    assert (caught.value.code, len(got)) == (STOPPED, 2)
    await asyncio.wait_for(engine.wait_stopped(), 60)
    with pytest.raises(EngineError) as caught:
        await engine.send(asked())
    assert caught.value.code == NOT_RUNNING
    await engine.start()
    assert engine.alive

    stalled = await started(Answer(stall_after=1))
    response = await stalled.send(asked(stream=True))
    chunks = aiter(response.chunks)
    await anext(chunks)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(chunks), 0.05)
    assert (stalled.running, stalled.cancelled) == (0, 1)

    echoing = await started(Answer(status=400))
    refused = await echoing.send(asked(secret="marker"))
    assert refused.status == 400
    assert b"marker" in await refused.read(LIMIT)

    huge = await started(Answer.huge(5_000_000))
    assert len(await (await huge.send(asked(stream=True))).read(LIMIT)) > 5_000_000

    failing = FakeEngine(fail_starts=1)
    with pytest.raises(EngineError):
        await failing.start()
    await failing.start()
    assert failing.starts == 2


async def test_each_request_can_get_another_answer() -> None:
    def script(_: str, body: Mapping[str, Any]) -> Answer:
        return Answer.text(body["want"])

    engine = FakeEngine(script=script)
    await engine.start()
    for want in ("one", "two"):
        whole = json.loads(await (await engine.send(asked(want=want))).read(LIMIT))
        assert whole["choices"][0]["message"]["content"] == want


async def test_as_a_server(tmp_path: Path) -> None:
    answers = iter([Answer.text("a b"), Answer(crash_after=1)])
    engine = FakeEngine(script=lambda _path, _body: next(answers))
    await engine.start()
    path = str(tmp_path / "s")
    server = await serve(engine, path=path)
    client = HttpClient(UnixAddress(path=path), max_idle=1)
    body = asked(stream=True).body
    good = await (await client.request("POST", CHAT_COMPLETIONS, body)).read(LIMIT)
    assert len(events(good)) == 3
    with pytest.raises(EngineError) as caught:
        await (await client.request("POST", CHAT_COMPLETIONS, body)).read(LIMIT)
    assert caught.value.code == TRUNCATED
    client.close()
    server.close()
    await asyncio.sleep(0.02)
