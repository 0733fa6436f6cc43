"""An engine that computes nothing: OpenAI-shaped answers at a set pace, and faults on demand.

`FakeEngine` implements `cloister.engine.protocol.Engine` in this process. A *script* decides
what each request gets, so a test can have one answer crash half-way and the next succeed.
`serve` puts the same engine behind a unix socket or a loopback port as an HTTP server, for
benchmarks and for tests of `OpenAIUpstream`; so does ``python -m cloister.testing.fake_engine``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    RERANK,
    STOPPED,
    TOKENIZE,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.engine.requests import METHODS, NATIVE, method_of
from cloister.errors import EngineError
from cloister.testing import fake_dialects, fake_formats
from cloister.testing.fake_dialects import Dialect
from cloister.testing.fake_formats import Said, ToolCall

JSON: Final = "application/json"
SSE: Final = "text/event-stream"
_MAX_HEAD: Final = 16_384
_MAX_BODY: Final = 64 << 20
_PACED: Final = 1_000
_TARGETS: Final = {native: path for path, native in NATIVE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request gets.

    `tokens` are sent at `rate` tokens per second (None: as fast as they are taken), the first
    after `delay` seconds. After `crash_after` tokens the engine dies, after `stall_after` it
    says nothing more. With `status` 400 or more the body repeats the prompt, as real engines
    do. `stamp` adds ``emitted_ns`` (the monotonic clock) to every event.

    A chat's answer begins with `reasoning` and ends with `images` (``data:`` URLs that it made)
    and `calls`; `finish` is the reason of its end, by default what these say.
    """

    tokens: tuple[str, ...] = tuple(f" word{index}" for index in range(32))
    rate: float | None = None
    delay: float = 0.0
    status: int = 200
    crash_after: int | None = None
    stall_after: int | None = None
    stamp: bool = False
    reasoning: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    finish: str = ""

    @property
    def reason(self) -> str:
        """Why it ends."""
        return self.finish or ("tool_calls" if self.calls else "stop")

    @staticmethod
    def text(text: str, **options: Any) -> Answer:
        """Answer with `text`, a token for each word."""
        words = text.split(" ")
        return Answer(tokens=(words[0], *(f" {word}" for word in words[1:])), **options)

    @staticmethod
    def huge(size: int, **options: Any) -> Answer:
        """Answer with one token of `size` characters."""
        return Answer(tokens=("x" * size,), **options)


Script = Callable[[str, Mapping[str, Any]], Answer]


def _plain(_path: str, _body: Mapping[str, Any]) -> Answer:
    return Answer()


def _model_info() -> ModelInfo:
    return ModelInfo(
        name="fake", sha256="0" * 64, path=None, context_length=4096, quantisation="none"
    )


@dataclass(slots=True, kw_only=True)
class FakeEngine:
    """An `Engine` whose answers come from `script(path, body)`.

    `requests` holds what arrived, `running` counts the answers in progress, `cancelled` those
    that were given up, `starts` how often it was started. `fail_starts` starts raise first.
    `paths` are those it serves, with the fields it says that it reads. Looks at its health are
    answered, and not kept in `requests`; a `frozen` engine answers nothing at all. With
    `recyclable` it can have siblings, each an object of its own that shares nothing but the
    script; `family` lists all of them, the first one included.
    `dialect` is whose chat completions its own look like.
    """

    script: Script = _plain
    dialect: Dialect = Dialect.PLAIN
    model: ModelInfo = field(default_factory=_model_info)
    fail_starts: int = 0
    paths: Paths = field(default_factory=lambda: dict.fromkeys(METHODS))
    requests: list[EngineRequest] = field(default_factory=list)
    slots: int = 1024
    recyclable: bool = False
    family: list[FakeEngine] = field(default_factory=list, repr=False)
    frozen: bool = False
    starts: int = 0
    running: int = 0
    cancelled: int = 0
    _stopped: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.family.append(self)

    def sibling(self) -> FakeEngine | None:
        """Another of its kind, where it is recyclable."""
        if not self.recyclable:
            return None
        return dataclasses.replace(
            self, requests=[], frozen=False, starts=0, running=0, cancelled=0, _stopped=None
        )

    @property
    def alive(self) -> bool:
        """Whether it is started and has not crashed."""
        return self._stopped is not None and not self._stopped.is_set()

    def configuration(self) -> Mapping[str, object]:
        """Say that it is a fake."""
        return {
            "engine": "fake",
            "model": {"name": self.model.name, "sha256": self.model.sha256},
            "managed": True,
            "isolation": {"mode": "none (fake engine)", "layers": []},
        }

    async def start(self) -> None:
        """Become alive, unless starts are set to fail."""
        self.starts += 1
        if self.fail_starts:
            self.fail_starts -= 1
            raise EngineError("the fake engine was told not to start", code="engine.start")
        self._stopped = asyncio.Event()

    async def wait_stopped(self) -> None:
        """Return when it has crashed or been closed."""
        if self._stopped is not None:
            await self._stopped.wait()

    async def aclose(self) -> None:
        """End it; answers in progress end with EngineError."""
        self.crash()

    def crash(self) -> None:
        """Die now."""
        if self._stopped is not None:
            self._stopped.set()

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Answer as the script says."""
        method_of(request.path, self.paths)
        stopped = self._stopped
        if stopped is None or stopped.is_set():
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        if self.frozen:
            await stopped.wait()
            raise EngineError("the engine stopped", code=STOPPED)
        if request.path != HEALTH:
            self.requests.append(request)
        if request.path in (MODELS, HEALTH):
            return _whole(200, _listing(self.model.name, request.path))
        body = json.loads(request.body)
        answer = self.script(request.path, body)
        if answer.status >= 400:
            return _whole(answer.status, _echoing_error(request.body))
        listed = _list(self.model.name, request.path, body)
        if listed is not None:
            return _whole(200, json.dumps(listed).encode())
        chat = request.path == CHAT_COMPLETIONS
        if body.get("stream"):
            events = self._events(answer, body, chat=chat, stopped=stopped)
            return EngineResponse(status=200, content_type=SSE, chunks=events, close=events.aclose)
        whole = self._document(answer, body, chat=chat, stopped=stopped)
        return EngineResponse(status=200, content_type=JSON, chunks=whole, close=whole.aclose)

    async def _tokens(self, answer: Answer, stopped: asyncio.Event) -> AsyncGenerator[str]:
        """Yield the tokens when they are due, and fail as told."""
        clock = asyncio.get_running_loop().time
        begun = clock() + answer.delay
        count = len(answer.tokens)
        for index in range(count + 1):
            if index == answer.crash_after:
                self.crash()
            if index == answer.stall_after:
                await stopped.wait()
            if stopped.is_set():
                raise EngineError("the engine stopped", code=STOPPED)
            if index == count:
                return
            due = begun + index / answer.rate if answer.rate else begun
            left = due - clock()
            if left > 0:
                await _sleep_unless(stopped, left)
            elif index % 16 == 15:
                await asyncio.sleep(0)
            if stopped.is_set():
                raise EngineError("the engine stopped", code=STOPPED)
            yield answer.tokens[index]

    async def _events(
        self, answer: Answer, body: Mapping[str, Any], *, chat: bool, stopped: asyncio.Event
    ) -> AsyncGenerator[bytes]:
        said = self.said(answer)

        def event(token: str | None, **delta: object) -> bytes:
            more = {"logprobs": _logprobs(token)} if token and body.get("logprobs") else {}
            return _event(self.model.name, token, answer, chat=chat, delta=delta, more=more)

        def told(deltas: Iterable[dict[str, Any]]) -> Iterator[bytes]:
            return (event("", **delta) for delta in deltas) if chat else iter(())

        with self._counted():
            for line in told(fake_dialects.before_text(self.dialect, said)):
                yield line
            async with contextlib.aclosing(self._tokens(answer, stopped)) as tokens:
                async for token in tokens:
                    yield event(token)
            for line in told(fake_dialects.after_text(self.dialect, said)):
                yield line
            yield event(None)
            if (body.get("stream_options") or {}).get("include_usage"):
                shell = _shell(self.model.name, chat=chat, chunk=True)
                yield _sse({**shell, **_usage(answer), **fake_dialects.beside_usage(self.dialect)})
            yield b"data: [DONE]\n\n"

    async def _document(
        self, answer: Answer, body: Mapping[str, Any], *, chat: bool, stopped: asyncio.Event
    ) -> AsyncGenerator[bytes]:
        with self._counted():
            async with contextlib.aclosing(self._tokens(answer, stopped)) as tokens:
                text = "".join([token async for token in tokens])
            choice: dict[str, object] = {"finish_reason": answer.reason}
            if chat:
                choice["message"] = fake_dialects.message(self.dialect, self.said(answer))
            else:
                choice["text"] = text
            if chat and body.get("logprobs"):
                choice["logprobs"] = _logprobs(*answer.tokens)
            choices = [{"index": index, **choice} for index in range(body.get("n") or 1)]
            shell = _shell(self.model.name, chat=chat, chunk=False)
            yield json.dumps(
                {**shell, "choices": choices, **_usage(answer, choices=False)}
            ).encode()

    def said(self, answer: Answer) -> Said:
        """What `answer` says, for documents that are made at once."""
        return Said(
            model=self.model.name,
            text="".join(answer.tokens),
            pieces=answer.tokens,
            reasoning=answer.reasoning,
            images=answer.images,
            calls=answer.calls,
            finish=answer.reason,
        )

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def _sleep_unless(stopped: asyncio.Event, seconds: float) -> None:
    if seconds < 0.1:  # one token's time: plain sleeping costs half as much as watching
        await asyncio.sleep(seconds)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopped.wait()


def _shell(model: str, *, chat: bool, chunk: bool) -> dict[str, object]:
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    return {"id": "fake-1", "object": kind, "created": 0, "model": model}


def _usage(answer: Answer, *, choices: bool = True) -> dict[str, object]:
    count = len(answer.tokens)
    usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    return {"choices": [], "usage": usage} if choices else {"usage": usage}


def _event(
    model: str,
    token: str | None,
    answer: Answer,
    *,
    chat: bool,
    delta: Mapping[str, object],
    more: Mapping[str, object],
) -> bytes:
    reason = answer.reason if token is None else None
    choice: dict[str, object] = {"index": 0, "finish_reason": reason, **more}
    if chat:
        choice["delta"] = {"content": token} if token else dict(delta)
    else:
        choice["text"] = token or ""
    document = {**_shell(model, chat=chat, chunk=True), "choices": [choice]}
    if answer.stamp:
        document["emitted_ns"] = time.perf_counter_ns()
    return _sse(document)


def _logprobs(*tokens: str) -> dict[str, object]:
    return {"content": [fake_formats.logprobs_of(token) for token in tokens]}


def _list(model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    match path:
        case _ if path == EMBEDDINGS:
            return fake_formats.embeddings(model, body)
        case _ if path == RERANK:
            return fake_formats.ranking(model, body)
        case _ if path == TOKENIZE:
            return fake_formats.tokens(body)
        case _:
            return None


def _sse(document: object) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _listing(model: str, path: str) -> bytes:
    if path == HEALTH:
        return b'{"status":"ok"}'
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "fake"}
    return json.dumps({"object": "list", "data": [entry]}).encode()


def _echoing_error(body: bytes) -> bytes:
    message = f"cannot process: {body.decode('utf-8', 'replace')}"
    return json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()


def _whole(status: int, body: bytes) -> EngineResponse:
    chunks = _once(body)
    return EngineResponse(status=status, content_type=JSON, chunks=chunks, close=chunks.aclose)


async def _once(body: bytes) -> AsyncGenerator[bytes]:
    yield body


# -- the same engine as an HTTP server ----------------------------------------------------


async def serve(
    engine: FakeEngine, *, path: str | None = None, port: int | None = None
) -> asyncio.Server:
    """Serve `engine` on the unix socket `path`, or on `port` of 127.0.0.1 (0: any)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _handle_one(engine, reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, EngineError):
            writer.transport.abort()
        except asyncio.CancelledError:
            pass  # the loop ends; streams of asyncio 3.11 take a cancelled handler for an error
        finally:
            writer.close()

    if path is not None:
        return await asyncio.start_unix_server(handle, path, limit=_MAX_HEAD)
    return await asyncio.start_server(handle, "127.0.0.1", port or 0, limit=_MAX_HEAD)


async def _handle_one(
    engine: FakeEngine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Serve one request; return whether another may follow on the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    request, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = request.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    length = min(int(fields.get("content-length", "0")), _MAX_BODY)
    body = await reader.readexactly(length)
    if target in fake_formats.NATIVE_PATHS and method == "POST":
        asked = json.loads(body)
        said = engine.said(engine.script(target, asked))
        kind, content = fake_formats.native(target, asked, said)
        _write_head(writer, 200, kind)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))
        return True
    target = _TARGETS.get(target, target)
    if METHODS.get(target) != method:
        _write_head(writer, 404, JSON)
        writer.write(b"0\r\n\r\n")
        return False
    response = await engine.send(EngineRequest(path=target, body=body))
    _write_head(writer, response.status, response.content_type)
    relay = asyncio.create_task(_relay(response, writer))
    gone = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({relay, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        relay.cancel()
        await asyncio.wait({relay, gone})
    if relay.cancelled():
        return False
    relay.result()
    return fields.get("connection", "").lower() != "close"


async def _relay(response: EngineResponse, writer: asyncio.StreamWriter) -> None:
    async with response:
        async for chunk in response.chunks:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _write_head(writer: asyncio.StreamWriter, status: int, content_type: str) -> None:
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(head.encode("ascii"))


async def _main(arguments: argparse.Namespace) -> None:
    answer = Answer(
        tokens=tuple(f" word{index}" for index in range(arguments.tokens)),
        rate=arguments.rate or None,
        stamp=arguments.stamp,
    )

    def echo(_path: str, body: Mapping[str, Any]) -> Answer:
        count = min(body.get("max_tokens") or arguments.tokens, arguments.tokens)
        rate = answer.rate if count <= _PACED else None
        return dataclasses.replace(
            answer, tokens=(f"{body['messages'][-1]['content']} ",) * count, rate=rate
        )

    engine = FakeEngine(script=echo if arguments.echo else lambda _path, _body: answer)
    await engine.start()
    server = await serve(engine, path=arguments.socket, port=arguments.port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible engine.")
    parser.add_argument("--socket", help="path of the unix socket to listen on")
    parser.add_argument("--port", type=int, default=0, help="or a port of 127.0.0.1")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0, help="tokens per second and stream")
    parser.add_argument("--stamp", action="store_true", help="put the time into every event")
    parser.add_argument(
        "--echo",
        action="store_true",
        help="say the last message again and again, once a token; what is longer than "
        f"{_PACED} tokens, as fast as it is taken",
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
