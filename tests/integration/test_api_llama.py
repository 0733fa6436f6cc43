"""The wider API through the seal, with the embedded engine and the demo model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloister.engine.http_unix import HttpClient, UnixAddress
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.llama_fields import PATHS
from cloister.engine.models import resolve_model
from cloister.engine.protocol import CHAT_COMPLETIONS, EMBEDDINGS, RERANK, TOKENIZE
from cloister.engine.sandbox import Sandbox
from support.sealed import Inner, Peer
from support.worker import running

pytestmark = pytest.mark.sandbox

ASKED = [{"role": "user", "content": "What is a TEE?"}]
EXACT: dict[str, Any] = {"temperature": 0, "seed": 1}
LIMIT = 1 << 20


@contextlib.asynccontextmanager
async def llama(**settings: Any) -> AsyncIterator[tuple[Peer, LlamaEngine]]:
    engine = LlamaEngine(
        resolve_model("demo"),
        isolation=Sandbox(),
        settings=LlamaSettings(parallel=2, threads=1, **settings),
    )
    async with running(engine=engine) as bench:  # type: ignore[arg-type]  # an engine like others
        yield bench.peer, engine


async def asked(peer: Peer, path: str, **fields: Any) -> Inner:
    inner = await peer.ask(path, {"model": "demo", **fields})
    assert inner.status == 200, inner.body
    assert inner.receipt is not None
    return inner


async def test_every_format_says_the_same() -> None:
    async with llama() as (peer, engine):
        model = engine.model.name
        plain = await peer.ask(
            CHAT_COMPLETIONS, {"model": model, "messages": ASKED, "max_tokens": 20, **EXACT}
        )
        text = plain.json["choices"][0]["message"]["content"]
        assert text
        question: dict[str, Any] = {"model": model, "max_output_tokens": 20, **EXACT}
        whole = await peer.ask("/v1/responses", {**question, "input": "What is a TEE?"})
        assert whole.json["output"][0]["content"][0]["text"] == text
        assert whole.json["status"] == "incomplete"
        assert whole.json["usage"]["output_tokens"] == 20
        streamed = await peer.ask("/v1/responses", {**question, "input": ASKED, "stream": True})
        deltas = [e["delta"] for e in streamed.events if e["type"] == "response.output_text.delta"]
        assert "".join(deltas) == text
        final = streamed.events[-1]["response"]
        assert final["usage"] == whole.json["usage"]
        question = {"model": model, "messages": ASKED, "max_tokens": 20, "temperature": 0}
        message = await peer.ask("/v1/messages", question)
        assert message.json["content"] == [{"type": "text", "text": text}]
        assert message.json["stop_reason"] == "max_tokens"
        told = await peer.ask("/v1/messages", {**question, "stream": True})
        pieces = [e["delta"]["text"] for e in told.events if e["type"] == "content_block_delta"]
        assert "".join(pieces) == text
        assert told.events[-2]["usage"] == message.json["usage"]


async def test_structured_output_and_probabilities() -> None:
    schema = {
        "type": "object",
        "properties": {"sealed": {"enum": ["yes", "no"]}, "open": {"const": False}},
        "required": ["sealed", "open"],
        "additionalProperties": False,
    }
    async with llama() as (peer, engine):
        form = {"type": "json_schema", "name": "person", "schema": schema, "strict": True}
        inner = await peer.ask(
            "/v1/responses",
            {
                "model": engine.model.name,
                "input": "What is a TEE?",
                "text": {"format": form},
                "include": ["message.output_text.logprobs"],
                "top_logprobs": 2,
                **EXACT,
            },
        )
        part = inner.json["output"][0]["content"][0]
        said = json.loads(part["text"])
        assert (said.keys(), said["open"]) == ({"sealed", "open"}, False)
        assert said["sealed"] in ("yes", "no")
        tokens = "".join(entry["token"] for entry in part["logprobs"])
        assert tokens.strip() == part["text"].strip()
        assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}


async def test_embeddings_and_tokens_beside_chat() -> None:
    async with llama() as (peer, engine):
        model = engine.model.name
        body = {"model": model, "input": ["What is a TEE?", "Remember the code."]}
        first, second = (await peer.ask(EMBEDDINGS, body)).json["data"]
        assert len(first["embedding"]) == len(second["embedding"]) == 256
        assert first["embedding"] != second["embedding"]
        # Nobody's vector depends on who else asks: not on the other inputs, nor on other requests.
        one: dict[str, Any] = {"model": model, "input": "What is a TEE?"}
        others = [{"model": model, "input": "word " * count} for count in (1, 3, 7, 50)]
        answers = await asyncio.gather(
            *(peer.ask(EMBEDDINGS, asked) for asked in (one, *others, one, *others, one))
        )
        for answer in (answers[0], answers[5], answers[10]):
            [alone] = answer.json["data"]
            assert alone["embedding"] == pytest.approx(first["embedding"], abs=1e-5)
        chat = {"model": model, "messages": ASKED, "max_tokens": 5}
        assert (await peer.ask(CHAT_COMPLETIONS, chat)).status == 200
        tokens = await peer.ask(TOKENIZE, {"model": model, "prompt": "What is a TEE?"})
        assert tokens.json["count"] == len(tokens.json["tokens"]) == 5
        long = await peer.ask(EMBEDDINGS, {"model": model, "input": "word " * 600})
        assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
        refused = await peer.ask(EMBEDDINGS, {**body, "dimensions": 8})
        assert (refused.status, refused.error["param"]) == (400, "dimensions")
        rank = {"model": model, "query": "a", "documents": ["b"]}
        assert (await peer.ask(RERANK, rank)).error["code"] == "path_refused"
    async with llama(embeddings=False) as (peer, engine):
        assert (await peer.ask(EMBEDDINGS, body)).error["code"] == "path_refused"
        assert engine.configuration()["embeddings"] == "off"


#: Fields whose values the engine does not look at before it uses them, and those of the worker.
UNLOOKED = frozenset(
    """
    add_generation_prompt cache_prompt chat_template_kwargs grammar json_schema logit_bias model
    parallel_tool_calls reasoning_effort response_fields response_format samplers stop stream
    stream_options tool_choice
    """.split()  # noqa: SIM905 - a table is easier to read without quotation marks
)


async def test_the_engine_still_reads_the_fields_that_it_is_said_to_read() -> None:
    """It complains about a value of a wrong type; a field that it ignores it cannot."""
    known = PATHS[CHAT_COMPLETIONS]
    assert known is not None
    async with llama() as (_, engine):
        client = HttpClient(UnixAddress(path=engine.socket_path))
        for name in sorted(known - UNLOOKED):
            body = {"messages": ASKED, "max_tokens": 1, name: {"x": [1]}}
            response = await client.request("POST", CHAT_COMPLETIONS, json.dumps(body).encode())
            await response.read(LIMIT)
            assert response.status in (400, 500), name
