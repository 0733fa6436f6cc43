"""An application in this process as an engine: what reaches it, what comes back, what ends it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from cloister.engine import asgi_app, asgi_call
from cloister.engine.asgi_app import AsgiEngine, AsgiSettings
from cloister.engine.asgi_call import HIGH_WATER, App
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    EMBEDDINGS,
    NOT_RUNNING,
    PATH_REFUSED,
    PROTOCOL,
    REQUEST_REFUSED,
    TRUNCATED,
    Engine,
    EngineRequest,
    ModelInfo,
)
from cloister.errors import ConfigurationError, EngineError
from cloister.evidence.component import IN_ENGINE
from support.chat_app import MODEL, Seen, chat_app

SECRET = "marker-8c1f"
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def settings(**changes: Any) -> AsgiSettings:
    model = ModelInfo(name=MODEL, sha256=None, path=None, context_length=0, quantisation="")
    return AsgiSettings(
        **{"application": "a.b:app", "model": model, "prefix_cache_off": True, **changes}
    )


def ask(text: str = "one two three", **more: Any) -> EngineRequest:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
    return EngineRequest(path=CHAT_COMPLETIONS, body=json.dumps(body).encode())


def bare(answer: App) -> App:
    """An application without a lifespan that lists the model and otherwise does as `answer`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        if scope["path"] == "/v1/models":
            listing = json.dumps({"data": [{"id": MODEL}]}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": listing})
            return
        await answer(scope, receive, send)

    return app


async def started(app: App, **changes: Any) -> AsgiEngine:
    options = {name: changes.pop(name) for name in ("max_answer_bytes",) if name in changes}
    engine = AsgiEngine(app, settings(**changes), **options)
    await engine.start()
    return engine


async def failure(engine: AsgiEngine, request: EngineRequest | None = None) -> EngineError:
    with pytest.raises(EngineError) as raised:
        response = await engine.send(request or ask())
        async with response:
            await response.read(1 << 30)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return raised.value


async def start(send: Send, status: int = 200, content_type: bytes = b"text/event-stream") -> None:
    headers = [(b"content-type", content_type), (b"x-app", b"told")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


# -- the plain case ---------------------------------------------------------------------------


async def test_an_answer_comes_whole_and_in_pieces() -> None:
    seen = Seen()
    engine = await started(chat_app(seen))
    answering: Engine = engine
    assert answering.alive
    async with await engine.send(ask()) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        answer = json.loads(await response.read(1 << 20))
    assert answer["choices"][0]["message"]["content"] == "one two three"
    async with await engine.send(ask(stream=True)) as response:
        assert response.content_type.startswith("text/event-stream")
        pieces = [piece async for piece in response.chunks]
    events = b"".join(pieces)
    assert len(pieces) > 1
    assert events.index(b"one ") < events.index(b"three ") < events.index(b"[DONE]")
    await engine.aclose()
    assert (seen.started, seen.stopped) == (1, 1)
    assert not engine.alive
    await engine.wait_stopped()
    await engine.aclose()


async def test_the_application_learns_the_body_and_nothing_of_who_asks() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("outer", default="")
    found: list[str] = []

    async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
        found.append(variable.get())
        assert (await receive())["more_body"] is False
        await start(send)
        await send({"type": "http.response.body", "body": b"x"})

    seen = Seen()
    engine = await started(chat_app(seen))
    request = EngineRequest(
        path=CHAT_COMPLETIONS, body=ask().body, cache_domain=SECRET, client=SECRET
    )
    async with await engine.send(request) as response:
        await response.read(1 << 20)
    assert seen.headers == [
        {
            "host": "localhost",
            "content-type": "application/json",
            "content-length": str(len(request.body.replace(b": ", b":").replace(b", ", b","))),
        }
    ]
    assert seen.clients == [None]
    assert seen.paths == ["http://localhost/v1/chat/completions"]
    assert SECRET not in json.dumps(seen.bodies)
    await engine.aclose()

    variable.set(SECRET)
    engine = await started(bare(answer))
    async with await engine.send(ask()) as response:
        assert await response.read(10) == b"x"
    assert found == [""]
    await engine.aclose()


async def test_what_is_measured_says_where_the_seal_ends() -> None:
    described = AsgiEngine(
        chat_app(Seen()), settings(health=frozenset({"/health"}))
    ).configuration()
    assert described == {
        "engine": "asgi-app",
        "application": "a.b:app",
        "model": {"name": MODEL, "sha256": "unproven"},
        "prefix_cache": "off (as stated)",
        "serves": [],
        "health": ["/health"],
        "managed": False,
        "termination": IN_ENGINE,
        "isolation": {"mode": "none (in-engine)", "layers": []},
    }


async def test_salts_are_as_for_a_server_of_its_own() -> None:
    seen = Seen()
    engine = await started(chat_app(seen), cache_salt=True, prefix_cache_off=False)
    for domain in ("theirs", None, None):
        request = EngineRequest(path=CHAT_COMPLETIONS, body=ask().body, cache_domain=domain)
        async with await engine.send(request) as response:
            await response.read(1 << 20)
    salts = [body["cache_salt"] for body in seen.bodies]
    assert salts[0] == "theirs"
    assert len({len(salts[1]), len(salts[2])}) == 1
    assert salts[1] != salts[2]
    refused = await failure(engine, ask(cache_salt="mine"))
    assert refused.code == REQUEST_REFUSED
    await engine.aclose()


@pytest.mark.parametrize(
    "change",
    [
        {"cache_salt": True},
        {"prefix_cache_off": False},
        {"serves": frozenset({"/v1/files"})},
        {"serves": frozenset({CHAT_COMPLETIONS})},
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    settings(serves=frozenset({EMBEDDINGS}))
    with pytest.raises(ConfigurationError):
        settings(**change)


async def test_other_paths_and_other_moments_are_refused() -> None:
    engine = AsgiEngine(chat_app(Seen()), settings())
    assert (await failure(engine)).code == NOT_RUNNING
    await engine.start()
    with pytest.raises(RuntimeError):
        await engine.start()
    for path in (EMBEDDINGS, "/metrics", "/v1/load_lora_adapter"):
        refused = await failure(engine, EngineRequest(path=path, body=b"{}"))
        assert refused.code == PATH_REFUSED
    with pytest.raises(RuntimeError):
        await engine.health("/health")
    await engine.aclose()
    assert (await failure(engine)).code == NOT_RUNNING


# -- start and stop ---------------------------------------------------------------------------


async def test_an_application_that_cannot_start_stops_the_worker() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": SECRET})

    with pytest.raises(EngineError) as raised:
        await started(app)
    assert raised.value.code == "engine.start"
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("listing", "error"),
    [
        (b'{"data": [{"id": "other"}]}', ConfigurationError),
        (b'{"data": [{}]}', EngineError),
        (b"[]", EngineError),
        (b"not json " + SECRET.encode(), EngineError),
        (b" " * (asgi_app._MAX_LISTING + 1), EngineError),
    ],
)
async def test_the_application_has_to_list_the_model(
    listing: bytes, error: type[Exception]
) -> None:
    closed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            closed.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        await start(send, content_type=b"application/json")
        await send({"type": "http.response.body", "body": listing})

    with pytest.raises(error) as raised:
        await started(app)
    assert SECRET not in str(raised.value)
    assert closed == ["lifespan.shutdown"]


async def test_it_starts_again_after_it_was_closed() -> None:
    seen = Seen()
    engine = await started(chat_app(seen, endless=True))
    response = await engine.send(ask(stream=True))
    await engine.aclose()
    with pytest.raises(EngineError):
        await response.read(1 << 30)
    await engine.start()
    async with await engine.send(ask("again")) as response:
        assert b"again" in await response.read(1 << 20)
    await engine.aclose()
    assert (seen.started, seen.stopped) == (2, 2)


async def test_health_is_a_status_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await asyncio.Event().wait()
        await start(send, status=418)
        await send({"type": "http.response.body", "body": b"x" * (asgi_app._MAX_LISTING + 1)})

    engine = await started(bare(answer), health=frozenset({"/quick", "/slow"}))
    assert await engine.health("/quick") == 418
    monkeypatch.setattr(asgi_app, "_HEALTH_S", 0.01)
    with pytest.raises(EngineError):
        await engine.health("/slow")
    await engine.aclose()


# -- an application that misbehaves -----------------------------------------------------------


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Returns without an answer."""


async def half(_scope: Scope, _receive: Receive, send: Send) -> None:
    await start(send)
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def raises(_scope: Scope, receive: Receive, _send: Send) -> None:
    raise ValueError(f"cannot do {(await receive())['body']!r}")


async def exits(_scope: Scope, receive: Receive, _send: Send) -> None:
    raise SystemExit(f"leaving with {(await receive())['body']!r}")


async def groups(_scope: Scope, receive: Receive, _send: Send) -> None:
    text = str((await receive())["body"])
    raise BaseExceptionGroup(text, [ValueError(text), SystemExit(text)])


class Stray(BaseException):
    """Neither an error nor the end of a process, such as test runners and some libraries raise."""


async def strays(_scope: Scope, receive: Receive, _send: Send) -> None:
    raise Stray(str((await receive())["body"]))


async def raises_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await half(scope, receive, send)
    await raises(scope, receive, send)


async def body_first(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def two_heads(_scope: Scope, _receive: Receive, send: Send) -> None:
    await start(send)
    await start(send)


async def pushes(_scope: Scope, _receive: Receive, send: Send) -> None:
    await start(send)
    await send({"type": "http.response.push", "path": "/", "headers": []})


async def no_status(_scope: Scope, _receive: Receive, send: Send) -> None:
    await start(send, status=103)
    await send({"type": "http.response.body", "body": b"x"})


async def no_message(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({})


async def websocket(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (nothing, TRUNCATED),
        (half, TRUNCATED),
        (raises, TRUNCATED),
        (exits, TRUNCATED),
        (groups, TRUNCATED),
        (strays, TRUNCATED),
        (raises_midway, TRUNCATED),
        (body_first, PROTOCOL),
        (two_heads, PROTOCOL),
        (pushes, PROTOCOL),
        (no_status, PROTOCOL),
        (no_message, TRUNCATED),
        (websocket, PROTOCOL),
    ],
)
async def test_what_goes_wrong_says_nothing_of_the_prompt(
    answer: App,
    code: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        tasks.append(asyncio.current_task())
        await answer(scope, receive, send)

    engine = await started(bare(noted))
    assert (await failure(engine, ask(SECRET))).code == code
    await engine.aclose()
    (task,) = tasks
    # Left in the task, it would be logged when the task is collected.
    assert task is not None
    assert task.done()
    assert task.cancelled() or task.exception() is None
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("ending", [Stray(SECRET), ValueError(SECRET), asyncio.CancelledError()])
async def test_an_application_that_ends_at_its_start_takes_no_part(
    ending: BaseException, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise ending
        await bare(half)(scope, receive, send)

    async with asyncio.timeout(60):  # it would wait for an answer that never comes
        engine = await started(app)
        await engine.aclose()
    gc.collect()
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


async def test_what_arrived_before_it_failed_is_handed_on() -> None:
    engine = await started(bare(raises_midway))
    response = await engine.send(ask(SECRET))
    assert await anext(aiter(response.chunks)) == b"half"
    with pytest.raises(EngineError) as raised:
        await anext(aiter(response.chunks))
    assert raised.value.code == TRUNCATED
    await engine.aclose()


async def test_an_answer_that_is_too_long_ends() -> None:
    sent = []

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await start(send)
        while True:
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
            sent.append(1)

    engine = await started(bare(answer), max_answer_bytes=100_000)
    assert (await failure(engine)).code == PROTOCOL
    assert len(sent) <= 102
    await engine.aclose()


async def test_an_application_waits_for_who_reads_slowly() -> None:
    sent = 0

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await start(send)
        for number in range(64):
            more = number < 63
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": more})
            sent += 1

    engine = await started(bare(answer))
    response = await engine.send(ask())
    for _ in range(100):
        await asyncio.sleep(0)
    assert sent * (1 << 16) <= HIGH_WATER
    assert len(await response.read(1 << 23)) == 64 << 16
    assert sent == 64
    await engine.aclose()


async def test_a_reader_that_goes_away_ends_the_answer() -> None:
    seen = Seen()
    engine = await started(chat_app(seen, endless=True))
    response = await engine.send(ask(stream=True))
    await anext(aiter(response.chunks))
    assert not seen.abandoned.is_set()
    await response.aclose()
    async with asyncio.timeout(60):
        # Starlette drops a generator that it was streaming from; Python closes it when it may.
        while not seen.abandoned.is_set():
            gc.collect()
            await asyncio.sleep(0.01)
    with pytest.raises(EngineError):
        await anext(aiter(response.chunks))
    await engine.aclose()


async def test_an_application_is_told_that_the_client_has_gone() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await start(send)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await told.put((await receive())["type"])
        try:
            await send({"type": "http.response.body", "body": b"y", "more_body": True})
        except OSError:
            await told.put("nobody reads")

    engine = await started(bare(answer))
    response = await engine.send(ask())
    assert told.empty()
    await response.aclose()
    async with asyncio.timeout(60):
        assert [await told.get(), await told.get()] == ["http.disconnect", "nobody reads"]
    await engine.aclose()


async def test_an_application_that_does_not_care_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asgi_call, "GRACE_S", 0.01)
    cancelled = asyncio.Event()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await start(send)
        try:
            while True:
                try:
                    body = {"type": "http.response.body", "body": b"x", "more_body": True}
                    await send(body)
                except OSError:
                    continue
        except asyncio.CancelledError:
            cancelled.set()
            raise

    engine = await started(bare(answer))
    response = await engine.send(ask())
    await response.aclose()
    async with asyncio.timeout(60):
        await cancelled.wait()
    await engine.aclose()


async def test_an_application_that_never_answers_can_be_given_up() -> None:
    ended = asyncio.Event()

    async def answer(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    engine = await started(bare(answer))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.send(ask())
    async with asyncio.timeout(60):
        await ended.wait()
    await engine.aclose()


async def test_closing_ends_answers_in_flight() -> None:
    seen = Seen()
    engine = await started(chat_app(seen, endless=True))
    response = await engine.send(ask(stream=True))
    await anext(aiter(response.chunks))
    await engine.aclose()
    assert seen.stopped == 1
    assert not engine._calls


async def test_what_an_application_does_after_its_answer_is_let_be() -> None:
    done = asyncio.Event()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"x"})
        await asyncio.sleep(0.01)
        done.set()

    engine = await started(bare(answer))
    async with await engine.send(ask()) as response:
        assert await response.read(10) == b"x"
    async with asyncio.timeout(60):
        await done.wait()
    await engine.aclose()


@pytest.mark.parametrize("value", [b"text/html\r\nx: y", b"x" * 200, "text/häml".encode(), b"\xff"])
async def test_a_content_type_is_short_plain_text(value: bytes) -> None:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await start(send, content_type=value)
        await send({"type": "http.response.body", "body": b"x"})

    engine = await started(bare(answer))
    async with await engine.send(ask()) as response:
        assert response.content_type == ""
    await engine.aclose()
