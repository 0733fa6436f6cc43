"""Whole answers made out of streams. That they equal the engine's own: the sandbox tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloister.engine import assemble as module
from cloister.engine.assemble import assemble
from cloister.engine.budget import Budget
from cloister.errors import EngineError


async def cut(data: bytes, step: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


def stream(*events: object, done: bool = True) -> bytes:
    lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return b": ping\n\n" + lines + (b"data: [DONE]\n\n" if done else b"")


def event(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "i", "object": "chat.completion.chunk", "choices": [choice]}


async def whole(data: bytes, step: int = 7) -> tuple[int, dict[str, Any]]:
    status, body = await assemble(cut(data, step))
    return status, json.loads(body)


@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_text_choices_and_usage(step: int) -> None:
    usage = {"id": "i", "object": "chat.completion.chunk", "choices": [], "usage": {"n": 2}}
    data = stream(
        event(role="assistant", content=None),
        event(1, role="assistant", content="x"),
        event(content="é"),
        event(content="b"),
        event(finish="stop"),
        event(1, finish="length"),
        usage,
    )
    status, document = await whole(data, step)
    assert status == 200
    assert document == {
        "id": "i",
        "object": "chat.completion",
        "usage": {"n": 2},
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "éb"},
            },
            {
                "index": 1,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "x"},
            },
        ],
    }


async def test_tool_calls() -> None:
    first = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ":1}")]
    data = stream(event(tool_calls=[first]), *(event(tool_calls=[part]) for part in more))
    _, document = await whole(data)
    assert document["choices"][0]["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


async def test_an_error_in_mid_stream_is_the_answer() -> None:
    error = {"error": {"code": 503, "message": "no"}}
    assert await whole(stream(event(content="a"), error)) == (503, error)
    assert (await whole(stream({"error": "odd"})))[0] == 500


@pytest.mark.parametrize(
    "data",
    [
        stream(event(content="a"), done=False),
        b"data: {\n\ndata: [DONE]\n\n",
        b"data: []\n\ndata: [DONE]\n\n",
        stream({"no": "choices"}),
        stream({"choices": [{"delta": {}}]}),
        stream({"choices": [{"index": 0, "text": 5}]}),
        stream(event(tool_calls=[{"index": 3, "function": {}}])),
    ],
)
async def test_a_stream_of_another_shape_is_an_error(data: bytes) -> None:
    assert (await whole(stream(event(content="a"))))[0] == 200
    with pytest.raises(EngineError):
        await whole(data)


async def test_an_endless_stream_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(event(content="a"))
    monkeypatch.setattr(module, "MAX_ANSWER", len(data))
    assert (await whole(data))[0] == 200
    monkeypatch.setattr(module, "MAX_ANSWER", len(data) - 1)
    with pytest.raises(EngineError, match="too long"):
        await whole(data)


async def test_answers_that_are_put_together_have_one_bound() -> None:
    data = stream(*[event(content="x" * 100)] * 10)
    budget = Budget(3 * len(data))
    with budget.share() as spend:
        assert (await assemble(cut(data, 100), spend))[0] == 200
        assert budget.held > 2 * len(data)  # its values count besides its bytes
        with budget.share() as other, pytest.raises(EngineError, match="more memory"):
            await assemble(cut(data, 100), other)
    assert budget.held == 0
    with budget.share() as spend:
        assert (await assemble(cut(data, 100), spend))[0] == 200


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00"])
async def test_half_a_character_stays_an_escape(half: str) -> None:
    raw = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half.encode()
    status, body = await assemble(cut(raw + b"data: [DONE]\n\n", 50))
    assert status == 200
    assert half.encode() in body
    assert json.loads(body)


@pytest.mark.parametrize("data", [b'{"choices":[],"a":NaN}', b'{"choices":[{"index":{}}]}'])
async def test_events_that_have_no_way_back_into_json_are_refused(data: bytes) -> None:
    with pytest.raises(EngineError):
        await assemble(cut(b"data: " + data + b"\n\ndata: [DONE]\n\n", 50))


async def test_a_line_in_many_pieces_is_joined_once() -> None:
    """Adding each piece to what is there would copy 32 MiB here a million times over."""
    text = b"x" * (1 << 20)
    raw = b'data: {"choices":[{"index":0,"delta":{"content":"' + text + b'"}}]}\n\n'
    async with asyncio.timeout(60):
        status, _ = await assemble(cut(raw + b"data: [DONE]\n\n", 1))
    assert status == 200
