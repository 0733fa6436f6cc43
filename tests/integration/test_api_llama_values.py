"""Fields of OpenAI's interface with the embedded engine: heeded, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.engine.protocol import CHAT_COMPLETIONS, COMPLETIONS
from integration.test_api_llama import ASKED, llama
from support.sealed import Inner, Peer

pytestmark = pytest.mark.sandbox

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NAME = "cloister-demo"


async def ask(peer: Peer, *, stream: bool, **fields: Any) -> Inner:
    body = {"model": NAME, "messages": ASKED, "max_tokens": 24, "temperature": 0, **fields}
    return await peer.ask(CHAT_COMPLETIONS, {**body, "stream": stream})


def texts(inner: Inner, *, stream: bool) -> list[str]:
    """What each choice says."""
    assert inner.status == 200, inner.body
    said: dict[int, str] = {}
    documents = inner.events[:-1] if stream else [inner.json]
    for choice in (choice for document in documents for choice in document["choices"]):
        piece = choice["delta" if stream else "message"].get("content") or ""
        said[choice["index"]] = said.get(choice["index"], "") + piece
    return [said[index] for index in sorted(said)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_is_enforced_whatever_the_model_would_say(stream: bool) -> None:
    schemas: list[tuple[dict[str, Any], set[Any]]] = [
        ({"enum": ["zebra", "quagga"]}, {"zebra", "quagga"}),
        ({"type": "boolean"}, {True, False}),
        ({"const": 12345}, {12345}),
    ]
    async with llama() as (peer, _):
        free = texts(await ask(peer, stream=stream), stream=stream)
        for schema, allowed in schemas:
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            [text] = texts(await ask(peer, stream=stream, response_format=form), stream=stream)
            assert json.loads(text) in allowed
            with pytest.raises(ValueError):
                json.loads(free[0])


@pytest.mark.parametrize("stream", [False, True])
async def test_fields_do_what_they_say(stream: bool) -> None:
    async with llama() as (peer, _):
        [plain] = texts(await ask(peer, stream=stream), stream=stream)
        word = plain.split()[3]
        [stopped] = texts(await ask(peer, stream=stream, stop=[word]), stream=stream)
        assert plain.startswith(stopped)
        assert word not in stopped
        varied: dict[str, Any] = {"temperature": 1.5, "n": 2}
        once = texts(await ask(peer, stream=stream, seed=1, **varied), stream=stream)
        again = texts(await ask(peer, stream=stream, seed=1, **varied), stream=stream)
        other = texts(await ask(peer, stream=stream, seed=2, **varied), stream=stream)
        assert len(once) == len(other) == 2
        assert once == again != other
        assert once[0] != once[1]
        inner = await ask(peer, stream=stream, logprobs=True, top_logprobs=2, max_tokens=3)
        documents = inner.events[:-1] if stream else [inner.json]
        entries = [
            entry
            for document in documents
            for choice in document["choices"]
            for entry in (choice.get("logprobs") or {}).get("content", [])
        ]
        assert len(entries) == 3
        assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


async def test_penalties_and_biases_keep_it_from_repeating_itself() -> None:
    async def said(**fields: Any) -> str:
        body = {"model": NAME, "prompt": "a", "max_tokens": 8, "temperature": 0, **fields}
        text: str = (await peer.ask(COMPLETIONS, body)).json["choices"][0]["text"]
        return text

    async with llama() as (peer, _):
        counted = await peer.ask("/v1/tokenize", {"model": NAME, "prompt": "a"})
        [token] = counted.json["tokens"]
        repeated = "a" * 8
        assert await said() == repeated
        assert await said(frequency_penalty=2) != repeated
        assert not (await said(logit_bias={str(token): -100})).startswith("a")
        # Neither is enough by itself: what the one leaves, the other takes.
        bias = {str(token): -2.5}
        assert await said(logit_bias=bias) == repeated
        assert await said(presence_penalty=2) == repeated
        assert await said(presence_penalty=2, logit_bias=bias) != repeated


# These would keep llama.cpp from answering anybody for a minute, or end it.
SCHEMA_OF_MANY = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"enum": [*range(20_000)]}},
}
REFUSED: list[tuple[str, Any]] = [
    ("response_format", "json"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "no schema"}}),
    ("stop", 1),
    ("n", 3),
    ("max_tokens", 0),
    ("temperature", -1),
    ("logit_bias", [[1, 2]]),
    ("stream_options", {"canary": 1}),
    ("grammar", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    ("response_format", SCHEMA_OF_MANY),
    ("logit_bias", {str(token): 1 for token in range(100_000)}),
    ("dry_sequence_breakers", ["a"] * 3_000),
    ("messages", []),
    ("messages", [{"content": "canary"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
]
LACKING: list[tuple[str, Any]] = [
    ("tools", [TOOL]),
    ("tool_choice", "auto"),
    ("parallel_tool_calls", True),
    ("reasoning_effort", "low"),
    ("lora", [{"id": 0, "scale": 1.0}]),
    ("id_slot", 0),
    ("store", True),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_heeded_is_refused_by_name(stream: bool) -> None:
    async with llama() as (peer, _):
        assert (await ask(peer, stream=stream)).status == 200
        for (name, value), code in (
            *((one, "engine_refused") for one in REFUSED),
            *((one, "unsupported_parameter") for one in LACKING),
        ):
            inner = await ask(peer, stream=stream, **{name: value})
            assert (inner.status, inner.error["code"]) == (400, code), name
            # Names of llama.cpp's own are in no published reference: they are not repeated.
            published = name not in ("lora", "id_slot")
            assert inner.error["param"] == (name if published else None)
            assert b"canary" not in inner.body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT_COMPLETIONS, COMPLETIONS, "/v1/responses", "/v1/messages"])
async def test_what_does_not_fit_into_the_context(path: str, stream: bool) -> None:
    def body(words: int) -> dict[str, Any]:
        text = "canary " * words
        asked: dict[str, dict[str, Any]] = {
            CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": text}], "max_tokens": 2},
            COMPLETIONS: {"prompt": text, "max_tokens": 2},
            "/v1/responses": {"input": text, "max_output_tokens": 2},
            "/v1/messages": {"messages": [{"role": "user", "content": text}], "max_tokens": 2},
        }
        return {"model": NAME, "stream": stream, **asked[path]}

    async with llama() as (peer, _):
        assert (await peer.ask(path, body(4))).status == 200
        inner = await peer.ask(path, body(3_000))
        assert (inner.status, inner.error["code"]) == (400, "context_length_exceeded")
        assert b"canary" not in inner.body


@pytest.mark.parametrize(
    "broken",
    [
        b'{"model":"cloister-demo","messages":[{"role":"user","content":"canary"}]',
        b'{"model":"cloister-demo","messages":[],"messages":"canary"}',
        b'["canary"]',
        b'"canary"',
        b'{"model":"cloister-demo","canary":NaN}',
        b'{"model":"cloister-demo","canary":"\xff"}',
        '{"model":"cloister-demo","canary":1}'.encode("utf-16"),
        b'{"canary":' * 5_000,
        b'{"model":"cloister-demo","canary":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"model":"cloister-demo","canary":1e999}',
    ],
)
async def test_what_is_no_json_is_refused_without_being_repeated(broken: bytes) -> None:
    async with llama() as (peer, _):
        for path in (CHAT_COMPLETIONS, COMPLETIONS, "/v1/responses", "/v1/messages"):
            sealed = peer.seal(path, body=broken)
            inner = sealed.opened(await peer.send(sealed))
            assert (inner.status, inner.error["code"]) == (400, "bad_json")
            assert b"canary" not in inner.body
