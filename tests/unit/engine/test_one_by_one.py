"""Embeddings asked for one at a time, and put together again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from cloister.engine.one_by_one import embed
from cloister.engine.protocol import PROTOCOL, EngineResponse
from cloister.errors import EngineError

LIMIT = 1 << 20


async def once(body: bytes) -> AsyncGenerator[bytes]:
    yield body


class Server:
    """Answers with the length of each input, and sees whether two are asked for at once."""

    def __init__(self, *answers: bytes, status: int = 200) -> None:
        self.answers = list(answers)
        self.status = status
        self.asked: list[Any] = []
        self.running = 0

    async def __call__(self, method: str, path: str, body: bytes) -> EngineResponse:
        assert (method, path, self.running) == ("POST", "/v1/embeddings", 0)
        self.running += 1
        await asyncio.sleep(0)
        self.running -= 1
        given = json.loads(body)["input"]
        self.asked.append(given)
        entry = {"object": "embedding", "index": 0, "embedding": [len(given)]}
        usage = {"prompt_tokens": len(given), "total_tokens": len(given)}
        document = {"object": "list", "model": "m", "data": [entry], "usage": usage}
        chunks = once(self.answers.pop(0) if self.answers else json.dumps(document).encode())
        return EngineResponse(
            status=self.status, content_type="", chunks=chunks, close=chunks.aclose
        )


async def test_each_input_by_itself() -> None:
    server, lock = Server(), asyncio.Lock()
    cases: list[tuple[Any, list[Any]]] = [
        ("one", ["one"]),
        ([1, 2], [[1, 2]]),
        (["one", "three"], ["one", "three"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ]
    for given, asked in cases:
        server.asked.clear()
        refused, body = await embed(server, {"model": "m", "input": given}, lock)
        assert refused is None
        answer = json.loads(body)
        assert server.asked == asked
        assert [entry["index"] for entry in answer["data"]] == list(range(len(asked)))
        assert [entry["embedding"] for entry in answer["data"]] == [[len(one)] for one in asked]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, asked))


async def test_never_two_at_once() -> None:
    server, lock = Server(), asyncio.Lock()
    await asyncio.gather(*(embed(server, {"input": ["a", "b"]}, lock) for _ in range(5)))
    assert len(server.asked) == 10


async def test_a_refusal_is_handed_on() -> None:
    server = Server(b"no", status=400)
    refused, _ = await embed(server, {"input": ["a", "b"]}, asyncio.Lock())
    assert refused is not None
    assert await refused.read(LIMIT) == b"no"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"data":[]}', b'{"data":[1],"usage":{"prompt_tokens":1}}', b"[" * 99999],
    ids=range(6),
)
async def test_answers_of_another_shape(answer: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        await embed(Server(answer), {"input": "a"}, asyncio.Lock())
    assert caught.value.code == PROTOCOL
