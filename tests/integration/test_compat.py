"""Clients of Cosmian's example and of Triton's generate extension, through the real channel."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast
from urllib.parse import urlencode

import httpx2
import pytest

from cloister.cli.verify import encode
from cloister.client import open_async_connection
from cloister.client.proxy import LocalProxy
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import resolve_model
from cloister.engine.protocol import CHAT_COMPLETIONS, EngineRequest, EngineResponse
from cloister.engine.sandbox import Sandbox
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.compat import cosmian
from cloister.worker.settings import Dialect, Limits, Padding, WorkerSettings
from support.asgi import call
from support.scene import Scene, scene
from support.sealed import Inner, chat, until
from support.worker import Bench, running

ENSEMBLE = "/v2/models/ensemble/generate"
LOCAL = "127.0.0.1:8788"


def settings(*dialects: Dialect, padding: int = 256, **limits: float) -> WorkerSettings:
    return WorkerSettings(
        compat=frozenset(dialects or Dialect),
        padding=Padding(stream_bucket=padding),
        limits=dataclasses.replace(Limits(), **limits),  # type: ignore[arg-type]  # ints where due
    )


def in_url(text: str) -> str:
    return "/generate?" + urlencode({"prompt": base64.b64encode(text.encode()).decode()})


def posted(text: str) -> dict[str, str]:
    return {"prompt": base64.b64encode(text.encode()).decode()}


def unpadded(body: bytes) -> bytes:
    lines = body.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b":"))


def speaking(*tokens: str, **options: Any) -> FakeEngine:
    return FakeEngine(script=lambda *_: Answer(tokens=tokens, **options))


def asked(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in bench.engine.requests]


# -- what is answered ----------------------------------------------------------------------------


async def test_nothing_of_it_is_there_unless_switched_on() -> None:
    paths: list[tuple[str, object]] = [
        ("/health", None),
        ("/generate", {"query": "x"}),
        (in_url("x"), None),
        (ENSEMBLE, {"text_input": "x"}),
    ]
    async with running() as bench:
        for path, body in paths:
            inner = await bench.peer.ask(path, body)
            assert (inner.status, inner.error["code"]) == (404, "unknown_path")
        assert not bench.engine.requests
    async with running(settings()) as bench:
        for path, body in paths:
            assert (await bench.peer.ask(path, body)).status == 200
    async with running(settings(Dialect.TRITON)) as bench:
        assert [(await bench.peer.ask(*each)).status for each in paths] == [404, 404, 404, 200]


async def test_cosmian_health() -> None:
    async with running(settings()) as bench:
        inner = await bench.peer.ask("/health")
        assert (inner.status, inner.body) == (200, b"")
        bench.engine.fail_starts = 3
        bench.engine.crash()
        inner = await bench.peer.ask("/health")
        assert (inner.status, inner.error["code"]) == (503, "engine_restarting")


async def test_cosmian_query() -> None:
    async with running(settings(), engine=speaking("A", " caf\u00e9")) as bench:
        inner = await bench.peer.ask("/generate", {"query": "What?", "max_tokens": 9})
        assert (inner.status, inner.body) == (200, '{"response":"A café"}'.encode())
        assert inner.headers["content-type"] == "application/json"
        assert bench.engine.requests[0].path == CHAT_COMPLETIONS
        assert asked(bench)[0] == {
            "model": "fake",
            "messages": [{"role": "user", "content": "What?"}],
            "max_tokens": 9,
        }
        assert inner.receipt is not None
        missing = await bench.peer.ask("/generate", {"question": "canary"})
        assert missing.status == 400
        assert b"canary" not in missing.body


STREAM = (
    b'id: 1\nevent: data\ndata: "I"\n\n'
    b'id: 2\nevent: data\ndata: " say \\"error\\""\n\n'
    b'id: 3\nevent: data\ndata: "error"\n\n'
    b"id: 4\nevent: end\ndata: {}\n\n"
)


@pytest.mark.parametrize("padding", [1, 256])
@pytest.mark.parametrize("way", ["url", "post"])
async def test_cosmian_stream_to_the_byte(padding: int, way: str) -> None:
    engine = speaking("I", ' say "error"', "error")
    async with running(settings(padding=padding), engine=engine) as bench:
        inner = await (
            bench.peer.ask(in_url("hello"))
            if way == "url"
            else bench.peer.ask("/generate", posted("hello"))
        )
        assert inner.status == 200
        assert inner.headers["content-type"] == "text/event-stream"
        assert unpadded(inner.body) == STREAM
        assert padding > 1 or inner.body == STREAM
        assert inner.receipt is not None
        assert inner.receipt.document["endpoint"] == "/generate"  # without the prompt
        assert asked(bench)[0]["messages"] == [{"role": "user", "content": "hello"}]


async def test_an_answer_without_words_is_a_whole_stream() -> None:
    async with running(settings(padding=1), engine=speaking()) as bench:
        inner = await bench.peer.ask(in_url("hello"))
        assert (inner.status, inner.body) == (200, cosmian.end(1))
        inner = await bench.peer.ask(ENSEMBLE + "_stream", {"text_input": "hello"})
        assert (inner.status, inner.body) == (200, b"")


async def test_a_long_prompt_in_the_url() -> None:
    async with running(settings()) as bench:
        assert (await bench.peer.ask(in_url("x" * 16_000))).status == 200
        inner = await bench.peer.ask(in_url("x" * 40_000))
        assert (inner.status, inner.error["code"]) == (413, "request_too_large")
        assert (await bench.peer.ask("/generate", posted("x" * 40_000))).status == 200


async def test_triton_generate() -> None:
    body = {"text_input": "What?", "max_tokens": 20, "bad_words": "", "stop_words": "end"}
    async with running(settings(), engine=speaking("A", " caf\u00e9")) as bench:
        inner = await bench.peer.ask(ENSEMBLE, body)
        assert inner.status == 200
        assert inner.body == (
            '{"model_name":"ensemble","model_version":"1","text_output":"A café"}'.encode()
        )
        assert asked(bench)[0] == {
            "model": "fake",
            "messages": [{"role": "user", "content": "What?"}],
            "max_tokens": 20,
            "stop": ["end"],
        }
        other = await bench.peer.ask("/v2/models/other/generate", body)
        assert (other.status, other.error["code"]) == (404, "model_not_found")


async def test_triton_stream_to_the_byte() -> None:
    engine = speaking("error", "\u2028")
    async with running(settings(padding=1), engine=engine) as bench:
        inner = await bench.peer.ask("/v2/models/fake/generate_stream", {"text_input": "x"})
        head = b'data: {"model_name":"fake","model_version":"1","text_output":'
        assert inner.body == head + b'"error"}\n\n' + head + b'"\\u2028"}\n\n'


# -- faults of the replaced that are not repeated ------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Reads(FakeEngine):
    """Answers with the given reads, whatever they are."""

    reads: tuple[bytes, ...] = ()
    content_type: str = "text/event-stream"

    async def send(self, request: EngineRequest) -> EngineResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for read in self.reads:
                yield read

        async def close() -> None:
            return

        return EngineResponse(
            status=200, content_type=self.content_type, chunks=chunks(), close=close
        )


def reading(*reads: bytes, content_type: str = "text/event-stream") -> FakeEngine:
    return Reads(reads=reads, content_type=content_type)


def raw_event(content: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + content + b'"}}]}\n\n'


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\xf0", b"\x9f", b"\x98", b"\x80"),
        (b"\xf0\x9f", b"\x98\x80"),
        (b"\\ud83d", b"\\ude00"),
    ],
)
async def test_a_character_split_over_events_comes_out_whole(pieces: tuple[bytes, ...]) -> None:
    engine = reading(raw_event(b"a"), *map(raw_event, pieces), raw_event(b"z"), DONE)
    async with running(settings(padding=1), engine=engine) as bench:
        inner = await bench.peer.ask(in_url("x"))
        whole = cosmian.event(1, "a") + cosmian.event(2, "😀") + cosmian.event(3, "z")
        assert inner.body == whole + cosmian.end(4)


@pytest.mark.parametrize(
    "rest",
    [
        (),  # it ends early
        (b'data: {"choices":7}\n\n', DONE),
        (b'data: {"error":"canary"}\n\n', DONE),
    ],
)
async def test_a_stream_that_fails_gets_no_ending(rest: tuple[bytes, ...]) -> None:
    engine = reading(raw_event(b"a"), *rest)
    async with running(settings(padding=1), engine=engine) as bench:
        inner = await bench.peer.ask(in_url("x"))
        assert inner.body.startswith(cosmian.event(1, "a"))
        assert b"event: end" not in inner.body
        assert b"canary" not in inner.body
        assert inner.events[-1]["error"]["code"] == "engine_failed"
        assert inner.receipt is not None


@pytest.mark.parametrize(
    ("path", "body", "content_type", "read"),
    [
        (in_url("x"), None, "application/json", b'{"choices":[{"message":{"content":"c"}}]}'),
        ("/generate", {"query": "x"}, "text/event-stream", raw_event(b"c") + DONE),
        ("/generate", {"query": "x"}, "application/json", b'{"canary":[]}'),
        ("/generate", {"query": "x"}, "application/json", b"canary"),
        (ENSEMBLE, {"text_input": "x"}, "application/json", b'{"choices":[]}'),
        (in_url("x"), None, "text/event-stream", b"data: canary\n\n"),
        (in_url("x"), None, "text/event-stream", b""),
    ],
)
async def test_an_answer_of_the_wrong_shape_is_a_502(
    path: str, body: object, content_type: str, read: bytes
) -> None:
    async with running(settings(), engine=reading(read, content_type=content_type)) as bench:
        inner = await bench.peer.ask(path, body)
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")
        assert b"canary" not in inner.body


class Short(FakeEngine):
    """Takes only so many words, as an engine with a small context does."""

    words = 8

    async def send(self, request: EngineRequest) -> EngineResponse:
        messages = json.loads(request.body)["messages"]
        if sum(len(message["content"].split()) for message in messages) <= self.words:
            return await super().send(request)
        self.requests.append(request)
        refused = b'{"error":{"type":"exceed_context_size_error","message":"canary"}}'

        async def chunks() -> AsyncIterator[bytes]:
            yield refused

        async def close() -> None:
            return

        return EngineResponse(
            status=400, content_type="application/json", chunks=chunks(), close=close
        )


async def test_the_system_prompt_is_kept_when_the_history_is_too_long() -> None:
    turns = "".join(
        f"<|prompter|>question number {number}<|endoftext|><|assistant|>answer {number}"
        for number in range(40)
    )
    history = f"<|system|>be brief<|endoftext|>{turns}<|prompter|>and now<|endoftext|>"
    async with running(settings(), engine=Short()) as bench:
        inner = await bench.peer.ask("/generate", posted(history), idempotency_key="k")
        assert inner.status == 200
        assert inner.receipt is not None
        assert 2 <= len(bench.engine.requests) <= 8
        assert asked(bench)[-1]["messages"] == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "and now"},
        ]
        assert bench.worker.context.generations == 0
        again = await bench.peer.ask("/generate", posted(history), idempotency_key="k")
        assert (again.status, again.error["code"]) == (409, "idempotency_key_in_use")
        plain = await bench.peer.ask(in_url("one two three " * 30 + "last"))
        assert plain.status == 200
        assert asked(bench)[-1]["messages"][0]["content"].endswith("three last")


async def test_only_a_history_that_is_too_long_is_tried_again() -> None:
    history = "<|prompter|>one<|endoftext|><|assistant|>first<|prompter|>two"
    for status, code in ((500, "engine_failed"), (400, "engine_refused"), (503, "engine_busy")):
        async with running(settings(), engine=speaking(status=status)) as bench:
            inner = await bench.peer.ask("/generate", posted(history))
            assert inner.error["code"] == code
            assert len(bench.engine.requests) == 1


async def test_a_question_is_never_cut() -> None:
    long = "one two three " * 30
    async with running(settings(), engine=Short()) as bench:
        for path, body in (
            ("/generate", {"query": long}),
            ("/generate", posted(f"<|prompter|>{long}")),
            (ENSEMBLE, {"text_input": long}),
        ):
            bench.engine.requests.clear()
            inner = await bench.peer.ask(path, body)
            assert (inner.status, inner.error["code"]) == (400, "context_length_exceeded")
            assert len(bench.engine.requests) == 1


async def test_two_streams_run_at_once_and_one_that_nobody_reads_holds_up_nobody() -> None:
    engine = speaking(*("x",) * 200, rate=200)
    async with running(settings(), engine=engine) as bench:
        slow = bench.peer.start(bench.peer.seal(in_url("slow")))
        await slow.pieces(1)
        slow.reading.clear()
        sealed = [bench.peer.seal(in_url(f"number {number}")) for number in range(2)]
        calls = [bench.peer.start(each) for each in sealed]
        for each in calls:
            await each.pieces(2)
        assert engine.running == 3
        for one, each in zip(sealed, calls, strict=True):
            assert b"event: end" in one.opened(await each.result()).body
        slow.gone.set()
        slow.reading.set()
        await slow.result()
        await until(lambda: bench.worker.open_requests == 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (in_url("x"), None),
        ("/generate", posted("x")),
        (ENSEMBLE + "_stream", {"text_input": "x"}),
    ],
)
async def test_a_client_that_leaves_stops_the_engine(path: str, body: object) -> None:
    engine = speaking(*("x",) * 1000, rate=50)
    async with running(settings(), engine=engine) as bench:
        going = bench.peer.start(bench.peer.seal(path, body))
        await going.pieces(2)
        assert engine.running == 1
        going.gone.set()
        await going.result()
        await until(lambda: engine.running == 0)
        assert engine.cancelled == 1
        assert bench.worker.context.generations == 0


# -- what holds for every generation ------------------------------------------------------------


async def test_limits_and_keys_are_those_of_every_generation() -> None:
    engine = speaking(*("x",) * 1000, rate=50)
    one_at_a_time = settings(max_generations=1, generation_s=1.0)
    async with running(one_at_a_time, engine=engine) as bench:
        sealed = bench.peer.seal(in_url("x"))
        going = bench.peer.start(sealed)
        await until(lambda: engine.running == 1)
        inner = await bench.peer.ask(ENSEMBLE, {"text_input": "x"}, idempotency_key="k")
        assert (inner.status, inner.error["code"]) == (503, "at_capacity")
        ended = sealed.opened(await going.result())
        assert ended.events[-1]["error"]["code"] == "timeout"
        engine.script = lambda *_: Answer.text("fine")
        for expected in (200, 409):
            inner = await bench.peer.ask(ENSEMBLE, {"text_input": "x"}, idempotency_key="k")
            assert inner.status == expected


async def test_cache_domains_are_those_of_every_generation() -> None:
    secret = bytes(range(32))
    async with running(settings()) as bench:
        await bench.peer.ask(document=chat(), cache_secret=secret)
        await bench.peer.ask("/generate", {"query": "x"}, cache_secret=secret)
        await bench.peer.ask(ENSEMBLE, {"text_input": "x"})
        first, second, third = (request.cache_domain for request in bench.engine.requests)
        assert first == second is not None
        assert third != first  # without a secret nothing is shared


async def test_pieces_of_a_stream_have_one_size() -> None:
    engine = speaking("a", "be", "see the sea", " and more of it")
    async with running(settings(), engine=engine) as bench:
        sealed = bench.peer.seal(in_url("x"))
        call_ = bench.peer.start(sealed)
        inner = sealed.opened(await call_.result())
        sizes = {len(piece) for piece in inner.pieces[1:-1]}
        assert len(sizes) == 1
        assert sizes.pop() % 256 == 0


async def test_prompts_are_in_no_log_and_no_metric(caplog: pytest.LogCaptureFixture) -> None:
    marker = "canary-of-compat"
    encoded = base64.b64encode(marker.encode()).decode()
    engine = speaking(marker)
    async with running(settings(), engine=engine) as bench:
        assert marker.encode() in (await bench.peer.ask(in_url(marker))).body
        engine.script = lambda *_: Answer(status=500)
        await bench.peer.ask("/generate", {"query": marker})
        engine.script = lambda *_: Answer(tokens=(marker,) * 3, crash_after=2)
        await bench.peer.ask(ENSEMBLE, {"text_input": marker})
        metrics = bench.worker.context.metrics.exposition()
    for text in (bench.stream.getvalue(), caplog.text, metrics.decode()):
        assert marker not in text
        assert encoded not in text
    assert b'route="cosmian"' in metrics
    assert b'route="triton"' in metrics


async def test_in_clear_it_is_refused_with_the_way_to_connect() -> None:
    async with running(settings()) as bench:
        for path in ("/generate", "/health", ENSEMBLE):
            outer = await call(bench.worker, "POST", path, body=b'{"query":"canary"}')
            assert outer.status == 403
            assert json.loads(outer.body)["error"]["code"] == "plaintext_refused"
            assert b"canary" not in outer.body


# -- behind the local proxy ---------------------------------------------------------------------


@pytest.fixture
def spoken() -> Iterator[Scene]:
    engine = speaking("I", ' say "error"', "error")
    with scene(settings(padding=1), engine=engine) as made:
        yield made


async def test_clients_of_both_speak_through_the_local_proxy(spoken: Scene) -> None:
    connection = open_async_connection(spoken.url, trust_env=False, **spoken.trust)
    app = LocalProxy(connection, allowed_hosts=[LOCAL], encode=encode)
    inner = httpx2.ASGITransport(app=app)
    async with connection, httpx2.AsyncClient(transport=inner, base_url=f"http://{LOCAL}") as http:
        assert (await http.get("/health")).status_code == 200
        answer = await http.post("/generate", json={"query": "hello"})
        assert answer.json() == {"response": 'I say "error"error'}
        for stream in (
            await http.get("/generate", params=posted("hello")),
            await http.post("/generate", json=posted("hello")),
        ):
            assert stream.content == STREAM
            assert stream.headers["content-type"].startswith("text/event-stream")
        triton = await http.post(ENSEMBLE, json={"text_input": "hello", "max_tokens": 20})
        assert triton.json()["text_output"] == 'I say "error"error'
    assert all(request.path != "/generate" for request in spoken.proxy.seen)


async def test_web_pages_do_not_reach_them(spoken: Scene) -> None:
    connection = open_async_connection(spoken.url, trust_env=False, **spoken.trust)
    app = LocalProxy(connection, allowed_hosts=[LOCAL], encode=encode)
    inner = httpx2.ASGITransport(app=app)
    async with connection, httpx2.AsyncClient(transport=inner, base_url=f"http://{LOCAL}") as http:
        for path in ("/health", "/generate?prompt=eA==", ENSEMBLE):
            answer = await http.get(path, headers={"sec-fetch-site": "cross-site"})
            assert answer.status_code == 403
    assert not spoken.live.engine.requests


# -- with a real engine -------------------------------------------------------------------------


def texts(inner: Inner) -> list[str]:
    """The texts of a Cosmian stream, its framing checked."""
    *events, last = unpadded(inner.body).decode().removesuffix("\n\n").split("\n\n")
    assert last == f"id: {len(events) + 1}\nevent: end\ndata: {{}}"
    found = []
    for number, event in enumerate(events, 1):
        begin = f"id: {number}\nevent: data\ndata: "
        assert event.startswith(begin)
        found.append(json.loads(event.removeprefix(begin)))
    return found


@pytest.mark.sandbox
async def test_the_demo_model_answers_all_of_them() -> None:
    model = dataclasses.replace(resolve_model("demo"), name="fake")
    engine = LlamaEngine(model, isolation=Sandbox(), settings=LlamaSettings(parallel=2, threads=1))
    sampling = {"temperature": 0, "seed": 1, "max_tokens": 40}
    async with running(settings(), engine=cast(FakeEngine, engine)) as bench:
        question = "What is a TEE?"
        direct = await bench.peer.ask(document=chat(question, **sampling))
        said = direct.json["choices"][0]["message"]["content"]
        assert len(said) > 20
        query = await bench.peer.ask("/generate", {"query": question, **sampling})
        assert query.json == {"response": said}
        stream = await bench.peer.ask("/generate", {**posted(question), **sampling})
        assert "".join(texts(stream)) == said
        assert len(texts(stream)) > 3
        triton = await bench.peer.ask(ENSEMBLE, {"text_input": question, **sampling})
        assert triton.json["text_output"] == said
        turns = "".join(
            f"<|prompter|>What is attestation {number}?<|endoftext|><|assistant|>It is a proof."
            for number in range(200)
        )
        history = f"<|system|>Be kind.<|endoftext|>{turns}<|prompter|>{question}<|endoftext|>"
        long, other = await asyncio.gather(
            bench.peer.ask("/generate", posted(history)), bench.peer.ask(in_url(question))
        )
        assert "".join(texts(long))
        assert "".join(texts(other))
