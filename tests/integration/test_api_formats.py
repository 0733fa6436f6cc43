"""What the wider API refuses, what it bounds, and what a hostile engine makes of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    RERANK,
    TOKENIZE,
    EngineRequest,
    EngineResponse,
)
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import Limits, Padding, WorkerSettings
from support.sealed import Inner, chat, until
from support.worker import running

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
QUESTION = [{"role": "user", "content": "hello"}]
MINIMAL: Mapping[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: chat(),
    COMPLETIONS: {"model": "fake", "prompt": "hello"},
    RESPONSES: {"model": "fake", "input": "hello"},
    MESSAGES: {"model": "fake", "max_tokens": 5, "messages": QUESTION},
    EMBEDDINGS: {"model": "fake", "input": "hello"},
    RERANK: {"model": "fake", "query": "el", "documents": ["hello", "world", "elel"]},
    TOKENIZE: {"model": "fake", "prompt": "hi"},
}
PNG = "data:image/png;base64,AAAA"


TEXT = {"type": "text", "text": "canary"}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}


def knowing(*names: str) -> FakeEngine:
    """An engine that would ignore other fields than these and the minimal ones."""
    always = ("stream", "max_tokens", "encoding_format", *names)
    paths = {path: frozenset((*body, *always)) for path, body in MINIMAL.items()}
    return FakeEngine(paths=paths | {MODELS: frozenset(), HEALTH: frozenset()})


async def asked(engine: FakeEngine, path: str, **fields: Any) -> Inner:
    async with running(engine=engine) as bench:
        return await bench.peer.ask(path, MINIMAL[path] | fields)


def image(url: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]


@pytest.mark.parametrize("path", MINIMAL)
async def test_the_least_is_answered_with_a_receipt(path: str) -> None:
    inner = await asked(FakeEngine(), path)
    assert inner.status == 200, inner.body
    assert inner.receipt is not None


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (CHAT_COMPLETIONS, "store", True),
        (CHAT_COMPLETIONS, "seed", 1),
        (CHAT_COMPLETIONS, "web_search_options", {}),
        (CHAT_COMPLETIONS, "service_tier", "priority"),
        (COMPLETIONS, "suffix", "canary"),
        (COMPLETIONS, "best_of", 2),
        (EMBEDDINGS, "dimensions", 4),
        (TOKENIZE, "return_token_strs", True),
        (RESPONSES, "previous_response_id", "canary"),
        (RESPONSES, "store", True),
        (RESPONSES, "background", True),
        (RESPONSES, "conversation", "canary"),
        (RESPONSES, "prompt", {"id": "canary"}),
        (RESPONSES, "truncation", "auto"),
        (RESPONSES, "max_tool_calls", 1),
        (MESSAGES, "container", "canary"),
        (MESSAGES, "mcp_servers", ["canary"]),
        (MESSAGES, "service_tier", "canary"),
    ],
)
async def test_a_field_that_would_be_ignored_is_refused_by_name(
    path: str, name: str, value: object
) -> None:
    engine = knowing()
    assert (await asked(engine, path)).status == 200
    inner = await asked(engine, path, **{name: value})
    assert inner.status == 400
    assert inner.error["code"] == "unsupported_parameter"
    assert f"`{name}`" in inner.error["message"]
    assert b"canary" not in inner.body
    assert len(engine.requests) == 1


@pytest.mark.parametrize("path", MINIMAL)
async def test_a_field_that_nobody_documents_is_refused_without_its_name(path: str) -> None:
    inner = await asked(knowing(), path, canary=1)
    assert (inner.status, inner.error["code"]) == (400, "unsupported_parameter")
    assert b"canary" not in inner.body


async def test_an_engine_without_a_table_is_handed_everything() -> None:
    engine = FakeEngine()
    assert (await asked(engine, CHAT_COMPLETIONS, seed=1, mystery=2)).status == 200
    assert json.loads(engine.requests[0].body).items() >= {"seed": 1, "mystery": 2}.items()
    assert (await asked(engine, CHAT_COMPLETIONS, store=True)).status == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT_COMPLETIONS, {"store": False, "service_tier": "auto", "user": "u", "metadata": {}}),
        (COMPLETIONS, {"echo": False, "best_of": 1}),
        (RESPONSES, {"store": False, "background": False, "truncation": "disabled", "user": "u"}),
        (RESPONSES, {"metadata": {str(n): "x" * 512 for n in range(16)}, "user": "u" * 512}),
        (MESSAGES, {"service_tier": "auto", "thinking": {"type": "adaptive"}}),
        (MESSAGES, {"messages": [{"role": "user", "content": [RESULT, TEXT]}]}),
    ],
)
async def test_what_asks_for_nothing_is_accepted(path: str, fields: dict[str, Any]) -> None:
    inner = await asked(knowing(), path, **fields)
    assert inner.status == 200, inner.body


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (RESPONSES, "input", [{"type": "item_reference", "id": "canary"}]),
        (RESPONSES, "input", [{"role": "canary", "content": "x"}]),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_file"}]}]),
        (RESPONSES, "input", 5),
        (RESPONSES, "input", [{"type": "reasoning", "content": [{"type": "canary", "text": "x"}]}]),
        (RESPONSES, "tools", [{"type": "web_search"}]),
        (RESPONSES, "tool_choice", {"type": "allowed_tools"}),
        (RESPONSES, "include", ["reasoning.encrypted_content"]),
        (RESPONSES, "reasoning", {"summary": "auto"}),
        (RESPONSES, "text", {"format": {"type": "canary"}}),
        (RESPONSES, "top_logprobs", 2),
        (RESPONSES, "stream_options", {"include_obfuscation": True}),
        (RESPONSES, "metadata", "canary"),
        (RESPONSES, "metadata", {"canary": 1}),
        (RESPONSES, "metadata", {"canary": "x" * 513}),
        (RESPONSES, "metadata", {str(n): "canary" for n in range(17)}),
        (RESPONSES, "user", "canary" * 100),
        (RESPONSES, "user", ["canary"]),
        (MESSAGES, "messages", "canary"),
        (MESSAGES, "messages", [{"role": "system", "content": "x"}]),
        (MESSAGES, "messages", [{"role": "user", "content": [{"type": "document"}]}]),
        (MESSAGES, "messages", [{"role": "user", "content": [TEXT, RESULT]}]),
        (MESSAGES, "max_tokens", "canary"),
        (MESSAGES, "thinking", {"type": "enabled", "budget_tokens": 1024}),
        (MESSAGES, "tools", [{"type": "bash_20250124", "name": "bash"}]),
        (EMBEDDINGS, "input", []),
        (EMBEDDINGS, "input", ["x", 1]),
        (EMBEDDINGS, "input", ["x"] * 2049),
        (EMBEDDINGS, "encoding_format", "canary"),
        (EMBEDDINGS, "stream", True),
        (RERANK, "documents", [{"text": "canary"}]),
        (RERANK, "top_n", 0),
        (TOKENIZE, "prompt", 5),
    ],
)
async def test_values_that_cannot_be_meant_are_refused_by_name(
    path: str, field: str, value: object
) -> None:
    engine = FakeEngine()
    inner = await asked(engine, path, **{field: value})
    assert (inner.status, inner.error["code"]) == (400, "bad_value")
    assert b"canary" not in inner.body
    assert not engine.requests


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT_COMPLETIONS, {"messages": image({"url": "https://canary.test/x.png"})}),
        (CHAT_COMPLETIONS, {"messages": image("http://canary.test/x.png")}),
        (CHAT_COMPLETIONS, {"messages": image({"url": "file:///etc/canary"})}),
        (
            CHAT_COMPLETIONS,
            {"messages": [{"role": "user", "content": [{"video_url": {"url": "//canary"}}]}]},
        ),
        (
            RESPONSES,
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "https://canary.test/x"}],
                    }
                ]
            },
        ),
        (
            MESSAGES,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "url", "url": "https://canary"}}
                        ],
                    }
                ]
            },
        ),
    ],
)
async def test_nothing_is_fetched(path: str, fields: dict[str, Any]) -> None:
    engine = FakeEngine()
    inner = await asked(engine, path, **fields)
    assert (inner.status, inner.error["code"]) == (400, "url_refused")
    assert b"canary" not in inner.body
    assert not engine.requests


async def test_images_that_are_there_are_passed_on() -> None:
    engine = FakeEngine()
    part = {"type": "image_url", "image_url": {"url": PNG}}
    content = [{"type": "input_image", "image_url": PNG}]
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    blocks = [{"type": "image", "source": source}]
    await asked(engine, CHAT_COMPLETIONS, messages=[{"role": "user", "content": [part]}])
    await asked(engine, RESPONSES, input=[{"role": "user", "content": content}])
    await asked(engine, MESSAGES, messages=[{"role": "user", "content": blocks}])
    for request in engine.requests:
        assert json.loads(request.body)["messages"] == [{"role": "user", "content": [part]}]


@pytest.mark.parametrize("path", [EMBEDDINGS, RERANK, TOKENIZE])
async def test_a_path_that_the_engine_lacks(path: str) -> None:
    engine = FakeEngine(paths=dict.fromkeys((CHAT_COMPLETIONS, COMPLETIONS, MODELS)))
    inner = await asked(engine, path)
    assert (inner.status, inner.error["code"]) == (404, "path_refused")
    assert not engine.requests
    async with running(engine=engine) as bench:
        [model] = (await bench.peer.ask("/v1/models")).json["data"]
        assert path not in model["cloister"]["paths"]
        assert RESPONSES in model["cloister"]["paths"]


async def test_an_engine_for_embeddings_only() -> None:
    engine = FakeEngine(paths=dict.fromkeys((EMBEDDINGS, MODELS)))
    assert (await asked(engine, EMBEDDINGS)).status == 200
    for path in (CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, MESSAGES):
        inner = await asked(engine, path)
        assert (inner.status, inner.error["code"]) == (404, "path_refused")
    assert len(engine.requests) == 1
    async with running(engine=engine) as bench:
        [model] = (await bench.peer.ask("/v1/models")).json["data"]
    assert model["cloister"]["paths"] == [EMBEDDINGS, MODELS]


async def test_an_unproven_model_has_no_attested_name() -> None:
    engine = FakeEngine()
    engine.model = type(engine.model)(
        name="fake", sha256=None, path=None, context_length=0, quantisation=""
    )
    async with running(engine=engine) as bench:
        [model] = (await bench.peer.ask("/v1/models")).json["data"]
    assert list(model) == ["id", "object", "created", "owned_by", "cloister"]
    described = model["cloister"]
    unknown = ("attested_name", "digest", "context_length", "quantisation")
    assert [described[name] for name in unknown] == [None] * 4
    assert described["files"] == {}


async def test_ranking_and_tokens() -> None:
    inner = await asked(FakeEngine(), RERANK, top_n=2, return_documents=True)
    assert inner.json["results"] == [
        {"index": 2, "relevance_score": 0.4, "document": {"text": "elel"}},
        {"index": 0, "relevance_score": pytest.approx(1 / 6), "document": {"text": "hello"}},
    ]
    inner = await asked(FakeEngine(), TOKENIZE)
    assert inner.json == {"count": 2, "max_model_len": 4096, "tokens": [104, 105]}


# -- the rules of every generation ---------------------------------------------------------------


@pytest.mark.parametrize("path", MINIMAL)
async def test_an_idempotency_key_runs_once_on_every_path(path: str) -> None:
    async with running() as bench:
        first = await bench.peer.ask(path, MINIMAL[path], idempotency_key="k")
        again = await bench.peer.ask(path, MINIMAL[path], idempotency_key="k")
        assert (first.status, again.status) == (200, 409)
        assert again.error.get("code") == "idempotency_key_in_use"
        assert len(bench.engine.requests) == 1


@pytest.mark.parametrize("path", MINIMAL)
async def test_every_path_counts_against_the_capacity(path: str) -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=0))
    settings = WorkerSettings(limits=Limits(max_generations=1))
    async with running(settings, engine=engine) as bench:
        call = bench.peer.start(bench.peer.seal(document=chat()))
        await until(lambda: engine.running == 1)
        inner = await bench.peer.ask(path, MINIMAL[path])
        assert (inner.status, inner.error["code"]) == (503, "at_capacity")
        call.gone.set()
        await call.result()


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_cache_domains_reach_the_engine(path: str) -> None:
    async with running() as bench:
        for secret in (None, None, b"s" * 32, b"s" * 32):
            await bench.peer.ask(path, MINIMAL[path], cache_secret=secret)
        domains = [request.cache_domain for request in bench.engine.requests]
    assert domains[2] == domains[3] is not None
    assert domains[0] is None or len(set(domains)) == 3  # nobody's, or one that is never again


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_streams_are_padded_without_the_opening_setting_the_size(path: str) -> None:
    """The length of a token does not show, and the opening is padded by itself."""
    words = ("a", "bbbb", "c" * 12, "dd")
    engine = FakeEngine(script=lambda *_: Answer(tokens=words))
    bucket = Padding().stream_bucket
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(path, MINIMAL[path] | {"stream": True})
    sizes = [len(piece) for piece in inner.pieces if b"_delta" in piece or b"text.delta" in piece]
    assert len(set(sizes[1:4])) == 1
    assert sizes[1] <= 3 * bucket
    assert all(size % bucket == 0 for size in sizes[1:4])


# -- engines that answer otherwise ---------------------------------------------------------------


class Scripted(FakeEngine):
    """Sends the given reads, whatever they are."""

    reads: tuple[bytes, ...] = ()
    kind = "application/json"

    async def send(self, request: EngineRequest) -> EngineResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for read in type(self).reads:
                yield read

        async def close() -> None:
            return

        return EngineResponse(
            status=200, content_type=type(self).kind, chunks=chunks(), close=close
        )


def says(*reads: bytes, kind: str = "application/json") -> FakeEngine:
    return type("One", (Scripted,), {"reads": reads, "kind": kind})()  # type: ignore[no-any-return]  # made here


WHOLE_LIES = [
    b"canary",
    b"[]",
    b"{}",
    b'{"choices":[]}',
    b'{"choices":[{"message":{"content":5},"finish_reason":"stop"}]}',
    b'{"choices":[{"message":{"content":"canary"},"finish_reason":"canary"}]}',
    b'{"choices":[{"message":{"content":"canary"},"finish_reason":[]}]}',
    b'{"choices":[{"message":{"content":"canary"}}]}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"},{"message":{}}]}',
    b'{"choices":[{"message":{"tool_calls":[{}]},"finish_reason":"stop"}]}',
    b'{"choices":[{"message":{"tool_calls":5},"finish_reason":"stop"}]}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":-1}}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop","logprobs":{"content":[1]}}]}',
    b"[" * 100_000,
    b"\xff",
]


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("lie", WHOLE_LIES, ids=range(len(WHOLE_LIES)))
async def test_whole_answers_of_another_shape_are_the_engines_failure(
    path: str, lie: bytes
) -> None:
    inner = await asked(says(lie), path)
    assert (inner.status, inner.error["code"]) == (502, "engine_failed")
    assert b"canary" not in inner.body


def event(text: str) -> bytes:
    return b'data: {"choices":[{"delta":' + text.encode() + b"}]}\n\n"


GOOD = event('{"content":"a"}')
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM_LIES = [
    (GOOD, END),
    (GOOD, DONE),
    (GOOD, b"data: canary\n\n", DONE),
    (GOOD, b'data: {"error":{"message":"canary"}}\n\n', DONE),
    (GOOD, event('{"content":["canary"]}'), END, DONE),
    (GOOD, event('{"tool_calls":[{"index":1,"function":{"name":"canary"}}]}'), END, DONE),
    (GOOD, event('{"tool_calls":[{"index":-1,"function":{"name":"canary"}}]}'), END, DONE),
    (GOOD, event('{"tool_calls":[{"index":0,"function":{"arguments":"canary"}}]}'), END, DONE),
    (GOOD, b"x" * (1 << 20), b"x"),
]


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("reads", STREAM_LIES, ids=range(len(STREAM_LIES)))
async def test_streams_of_another_shape_end_with_an_authenticated_error(
    path: str, reads: tuple[bytes, ...]
) -> None:
    good = await asked(says(GOOD, END, DONE, kind="text/event-stream"), path, stream=True)
    last = good.events[-1]["type"]
    assert last in ("response.completed", "message_stop")
    inner = await asked(says(*reads, kind="text/event-stream"), path, stream=True)
    assert inner.status == 200
    assert inner.events[-1]["type"] == "error"
    assert inner.events[-1]["error"]["code"] == "engine_failed"
    assert last not in [one["type"] for one in inner.events]
    assert b"canary" not in inner.body
    assert inner.receipt is not None


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_a_failure_before_the_first_event_has_its_status(path: str) -> None:
    for reads in ((b"data: canary\n\n",), (), (DONE,)):
        inner = await asked(says(*reads, kind="text/event-stream"), path, stream=True)
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_a_stream_that_is_too_long_is_given_up(path: str) -> None:
    settings = WorkerSettings(limits=Limits(max_answer_bytes=10_000))
    engine = FakeEngine(script=lambda *_: Answer(tokens=("x" * 1000,) * 20))
    async with running(settings, engine=engine) as bench:
        inner = await bench.peer.ask(path, MINIMAL[path] | {"stream": True})
    assert inner.events[-1]["error"]["code"] == "engine_failed"
    assert inner.body.count(b"x" * 1000) < 20


VECTOR_LIES = [
    b"canary",
    b"[]",
    b'{"data":[]}',
    b'{"data":[{"index":0,"embedding":[]}]}',
    b'{"data":[{"index":0,"embedding":["canary"]}]}',
    b'{"data":[{"index":0,"embedding":[NaN]}]}',
    b'{"data":[{"index":0,"embedding":[1e39]}]}',
    b'{"data":[{"index":-1,"embedding":[1]}]}',
    b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]}]}',
]


@pytest.mark.parametrize("lie", VECTOR_LIES, ids=range(len(VECTOR_LIES)))
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_vectors_of_another_shape_are_the_engines_failure(lie: bytes, encoding: str) -> None:
    good = says(b'{"data":[{"index":0,"embedding":[1,0.5]}]}')
    assert (await asked(good, EMBEDDINGS, encoding_format=encoding)).status == 200
    inner = await asked(says(lie), EMBEDDINGS, encoding_format=encoding)
    assert (inner.status, inner.error["code"]) == (502, "engine_failed")
    assert b"canary" not in inner.body


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        (RERANK, b'{"results":[{"index":3,"relevance_score":1}]}'),
        (RERANK, b'{"results":[{"index":0,"relevance_score":1},{"index":0,"relevance_score":1}]}'),
        (RERANK, b'{"results":[{"index":0,"relevance_score":"canary"}]}'),
        (TOKENIZE, b'{"tokens":["canary"]}'),
        (TOKENIZE, b'{"tokens":[1],"token_strs":[1]}'),
    ],
)
async def test_other_lists_of_another_shape(path: str, lie: bytes) -> None:
    inner = await asked(says(lie), path)
    assert (inner.status, inner.error["code"]) == (502, "engine_failed")
    assert b"canary" not in inner.body


# -- what stays here -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_nothing_of_prompt_or_answer_is_logged(path: str, stream: bool) -> None:
    secret = [{"role": "user", "content": "canary-asked"}]
    asks = {"input": secret} if path == RESPONSES else {"messages": secret}
    for answer in (
        Answer(tokens=("canary-said",), reasoning=("canary-thought",)),
        Answer(tokens=("canary-said",), crash_after=1),
        Answer(status=500),
        Answer(tokens=("canary-said",), finish="canary-finish"),
    ):
        engine = FakeEngine(script=lambda *_, answer=answer: answer)
        async with running(engine=engine) as bench:
            await bench.peer.ask(path, MINIMAL[path] | asks | {"stream": stream})
            metrics = bench.worker.context.metrics.exposition()
        assert "canary" not in bench.stream.getvalue()
        assert b"canary" not in metrics


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_a_client_that_leaves_cancels_the_generation(path: str) -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 1000))
    async with running(engine=engine) as bench:
        call = bench.peer.start(bench.peer.seal(path, MINIMAL[path] | {"stream": True}))
        await call.pieces(3)
        call.gone.set()
        await call.result()
        await until(lambda: engine.running == 0)
        assert engine.cancelled == 1


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_time_runs_out_in_the_formats_own_words(path: str) -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=2))
    settings = WorkerSettings(limits=Limits(generation_s=1))
    async with running(settings, engine=engine) as bench:
        inner = await bench.peer.ask(path, MINIMAL[path] | {"stream": True})
        assert inner.events[-1]["type"] == "error"
        assert inner.events[-1]["error"]["code"] == "timeout"
        inner = await bench.peer.ask(path, MINIMAL[path])
        assert (inner.status, inner.error["code"]) == (504, "timeout")
