"""The API inside the seal: OpenAI's paths, and the receipts of those who ask again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote

from cloister.engine.budget import Spend
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    PATH_REFUSED,
    REQUEST_REFUSED,
    EngineRequest,
    EngineResponse,
    ModelInfo,
)
from cloister.errors import EngineError
from cloister.worker import compat, problems, wire
from cloister.worker.cache_domain import Caller
from cloister.worker.events import LineAssembler, StreamPadding
from cloister.worker.exchange import EVENT_STREAM, Exchange
from cloister.worker.formats import lists, messages, responses
from cloister.worker.formats.content import check_addresses
from cloister.worker.formats.fields import DOCUMENTED, check_fields
from cloister.worker.formats.messages_answer import MessagesTelling
from cloister.worker.formats.responses_answer import ResponsesTelling
from cloister.worker.formats.translation import ChatTranslation, Lines, Telling
from cloister.worker.generation import Generation, check_generation, check_whole
from cloister.worker.pool import AT_CAPACITY, EnginePool
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.replay import Admission
from cloister.worker.request import RequestFields
from cloister.worker.settings import Dialect

_JSON_HEADERS: Final = ((b"content-type", wire.JSON_TYPE), (b"cache-control", b"no-store"))
_MAX_ENGINE_ERROR: Final = 64 * 1024
_CONTEXT_MARKS: Final = (
    b"exceed_context_size",
    b"context_length_exceeded",
    b"context length",
    b"is too large to process",
)
"""How engines say that a prompt is too long: llama.cpp's type, vLLM's and SGLang's texts, and
llama.cpp's for an embedding."""


async def handle(exchange: Exchange) -> None:
    """Answer one whole, admitted request. RefusedError says what to answer instead."""
    fields = exchange.fields
    if fields is None:
        raise RuntimeError("a whole request has its fields")
    match fields.path:
        case _ if fields.path in (CHAT_COMPLETIONS, COMPLETIONS):
            exchange.route = "chat" if fields.path == CHAT_COMPLETIONS else "completions"
            _require(fields.method, "POST")
            await _generate(exchange, fields.path)
        case _ if fields.path in (responses.PATH, messages.PATH):
            exchange.route = "responses" if fields.path == responses.PATH else "messages"
            _require(fields.method, "POST")
            await _through_chat(exchange, fields.path)
        case _ if fields.path in lists.ROUTES:
            exchange.route = lists.ROUTES[fields.path]
            _require(fields.method, "POST")
            await _list(exchange, fields.path)
        case _ if fields.path == MODELS or fields.path.startswith(MODELS + "/"):
            exchange.route = "models"
            _require(fields.method, "GET")
            # OpenAI's SDK escapes what a name may hold in a path, slashes too.
            await _models(exchange, unquote(fields.path.removeprefix(MODELS).removeprefix("/")))
        case _ if fields.path.startswith(wire.RECEIPTS_PREFIX):
            exchange.route = "receipts"
            _require(fields.method, "GET")
            await _receipt(exchange, fields.path.removeprefix(wire.RECEIPTS_PREFIX))
        case _ if dialect := compat.dialect_of(fields.path, exchange.context.settings.compat):
            exchange.route = dialect.value
            await _compat(exchange, dialect, fields)
        case _:
            raise RefusedError(problems.UNKNOWN_PATH)


def _require(method: str, expected: str) -> None:
    if method != expected:
        raise RefusedError(problems.WRONG_METHOD)


async def _models(exchange: Exchange, name: str) -> None:
    context = exchange.context
    entries = {
        engine.model.name: {
            "id": engine.model.name,
            "object": "model",
            "created": context.started_at,
            "owned_by": "cloister",
            "cloister": _described(engine.model, engine.paths),
        }
        for engine in context.engines
    }
    if name and name not in entries:
        raise RefusedError(problems.UNKNOWN_MODEL)
    document = entries[name] if name else {"object": "list", "data": [*entries.values()]}
    await exchange.answer(200, json.dumps(document).encode(), _JSON_HEADERS)


def _described(model: ModelInfo, served: Iterable[str]) -> dict[str, Any]:
    """What OpenAI's entry has no field for. A hint: evidence and receipts are what prove it."""
    through_chat = {responses.PATH, messages.PATH} if CHAT_COMPLETIONS in served else set()
    paths = {*served, *through_chat} - {HEALTH}
    files = model.digests if len(model.files) > 1 else {}
    return {
        "attested_name": None if model.sha256 is None else model.name,
        "digest": None if model.sha256 is None else f"sha256:{model.sha256}",
        "files": {role: f"sha256:{digest}" for role, digest in files.items()},
        "context_length": model.context_length or None,
        "quantisation": model.quantisation or None,
        "paths": sorted(paths),
    }


async def _receipt(exchange: Exchange, receipt_id: str) -> None:
    context = exchange.context
    found = context.receipts.find(receipt_id, exchange.credential, context.clocks.steady())
    if found is None:
        raise RefusedError(problems.UNKNOWN_RECEIPT)
    await exchange.answer(200, found, _JSON_HEADERS)


async def _compat(exchange: Exchange, dialect: Dialect, fields: RequestFields) -> None:
    """Answer a path of another server: as a chat, or that the worker is there."""
    engines = exchange.context.engines
    translation = compat.translate(dialect, fields, exchange.body, models=engines.names)
    if translation is not None:
        exchange.translation, exchange.body = translation, translation.body()
        await _generate(exchange, CHAT_COMPLETIONS)
    elif engines.first.ready:
        await exchange.answer(200, b"", ((b"cache-control", b"no-store"),))
    else:
        raise RefusedError(problems.ENGINE_DOWN)


async def _through_chat(exchange: Exchange, path: str) -> None:
    """Answer what is translated to a chat completion and back."""
    context = exchange.context
    checked = check_generation(exchange.body, models=context.engines.names)
    document, model = checked.document, checked.model

    def new_id(prefix: str) -> str:
        return f"{prefix}_{context.random(16).hex()}"

    telling: Telling
    if path == responses.PATH:
        asked = responses.read_request(document)
        chat = asked.chat
        now = int(context.clocks.wall())
        telling = ResponsesTelling(asked.repeated, model=model, new_id=new_id, created_at=now)
    else:
        known = _engine(exchange, checked).paths.get(CHAT_COMPLETIONS)
        wanted = messages.read_request(document, known=known)
        chat = wanted.chat
        telling = MessagesTelling(model=model, stop_sequences=wanted.stop_sequences, new_id=new_id)
    exchange.translation = ChatTranslation(
        request=chat, telling=telling, max_answer=context.settings.limits.max_answer_bytes
    )
    exchange.body = exchange.translation.body()
    await _generate(exchange, CHAT_COMPLETIONS)


async def _list(exchange: Exchange, path: str) -> None:
    """Answer what comes whole, and is made anew from what the engine says."""
    checked = check_generation(exchange.body, models=exchange.context.engines.names)
    engine = _engine(exchange, checked)
    if path not in engine.paths:
        raise RefusedError(problems.PATH_REFUSED)
    exchange.translation = lists.translate(path, checked.document, engine.model)
    exchange.body = exchange.translation.body()
    await _generate(exchange, path)


def _engine(exchange: Exchange, generation: Generation) -> EnginePool:
    """The engine of the model that was asked for."""
    engine = exchange.context.engines.get(generation.model)
    if engine is None:
        raise RefusedError(problems.UNKNOWN_MODEL)
    return engine


def _check(path: str, document: dict[str, Any], engine: EnginePool) -> None:
    """RefusedError for what this engine would not heed, or nobody may ask for."""
    if path not in engine.paths:
        raise RefusedError(problems.PATH_REFUSED)
    check_fields(document, engine.paths[path], documented=DOCUMENTED[path])
    if path == CHAT_COMPLETIONS:
        check_addresses(document.get("messages"))


async def _generate(exchange: Exchange, path: str) -> None:
    context = exchange.context
    generation = check_generation(exchange.body, models=context.engines.names)
    exchange.body = b""
    engine = _engine(exchange, generation)
    _check(path, generation.document, engine)
    secret = None if exchange.fields is None else exchange.fields.cache_secret
    caller = context.cache_domains.caller(exchange.credential, secret)
    if not context.places.enter(caller.asker):
        raise RefusedError(problems.AT_CAPACITY)
    context.metrics.generations.set(context.generations)
    try:
        if not engine.ready:
            raise RefusedError(problems.ENGINE_DOWN)
        _begin_once(exchange)
        async with asyncio.timeout(context.settings.limits.generation_s):
            await _run_fitting(exchange, path, generation, engine, caller)
    except TimeoutError:
        raise RefusedError(problems.TIMED_OUT) from None
    finally:
        context.places.leave(caller.asker)
        context.metrics.generations.set(context.generations)


def _begin_once(exchange: Exchange) -> None:
    """Remember the idempotency key: from here on the prompt counts as having run."""
    fields, context = exchange.fields, exchange.context
    if fields is None or fields.idempotency_key is None:
        return
    admission = context.idempotency.admit(
        exchange.credential, fields.idempotency_key, context.clocks.steady()
    )
    if admission is Admission.SEEN:
        raise RefusedError(problems.ALREADY_STARTED)
    if admission is Admission.FULL:
        raise RefusedError(problems.MEMORY_FULL)


def _release(exchange: Exchange) -> None:
    """The engine did not take the prompt: its idempotency key may be used again."""
    fields = exchange.fields
    if fields is not None and fields.idempotency_key is not None:
        exchange.context.idempotency.release(exchange.credential, fields.idempotency_key)


async def _run_fitting(
    exchange: Exchange, path: str, generation: Generation, engine: EnginePool, caller: Caller
) -> None:
    """Run; where a translated history is too long, again with ever less of it."""
    while True:
        try:
            await _run(exchange, path, generation, engine, caller)
        except RefusedError as refused:
            if exchange.translation is None or refused.problem is not problems.CONTEXT_LENGTH:
                raise
            shorter = exchange.translation.shorter()
            if shorter is None:
                raise
            exchange.translation = shorter
            generation = dataclasses.replace(generation, body=shorter.body())
        else:
            return


async def _run(
    exchange: Exchange, path: str, generation: Generation, engine: EnginePool, caller: Caller
) -> None:
    request = EngineRequest(
        path=path,
        body=generation.body,
        cache_domain=caller.domain,
        client=caller.client,
        whole=not generation.stream,
    )
    try:
        response = await engine.send(request, asker=caller.asker)
    except EngineError as error:
        problem = _engine_problem(error)
        if error.code in (NOT_RUNNING, AT_CAPACITY, REQUEST_REFUSED, PATH_REFUSED):
            _release(exchange)
        raise RefusedError(problem) from None
    async with response:
        if response.status != 200:
            problem = await _refusal(response)
            if problem is problems.ENGINE_BUSY:
                _release(exchange)
            raise RefusedError(problem)
        kind = response.content_type.partition(";")[0].strip().lower()
        is_stream = kind.encode("latin-1") == EVENT_STREAM
        if is_stream is not generation.stream:
            raise RefusedError(problems.ENGINE_FAILED)
        if is_stream:
            await _stream(exchange, response, engine.model)
        else:
            await _whole(exchange, response, engine.model)


async def _stream(exchange: Exchange, response: EngineResponse, model: ModelInfo) -> None:
    with exchange.context.answers.share() as spend:
        kept = exchange.translation is not None or exchange.writer.collects
        await _pass_on(exchange, response, model, spend if kept else None)


async def _pass_on(
    exchange: Exchange, response: EngineResponse, model: ModelInfo, spend: Spend | None
) -> None:
    """Pass a stream on; `spend` is told of it where it is kept in memory meanwhile."""
    context = exchange.context
    limits = context.settings.limits
    translation = exchange.translation
    assembler = LineAssembler(limits.max_line_bytes, text=translation is None)
    lines: Lines = assembler if translation is None else translation.lines(assembler)
    bucket = context.settings.padding.stream_bucket
    pad = StreamPadding(bucket).pad
    feed, data = lines.feed, exchange.writer.data
    problem: Problem | None = None
    left = limits.max_answer_bytes
    try:
        async for read in response.chunks:
            left -= len(read)
            if left < 0:
                problem = problems.ENGINE_FAILED
                break
            if spend is not None:
                spend(len(read))
            ready = feed(read)
            if ready or lines.opening:
                if not exchange.writer.status:
                    _start_stream(exchange, model)
                    if lines.opening:
                        await data(StreamPadding(bucket).pad(lines.opening))
                if ready:
                    await data(pad(ready))
            if lines.failed:
                problem = problems.ENGINE_FAILED
                break
        else:
            rest = lines.rest()
            if rest:
                if not exchange.writer.status:
                    _start_stream(exchange, model)
                await data(pad(rest))
            if lines.failed:
                problem = problems.ENGINE_FAILED
    except EngineError as error:
        problem = _engine_problem(error)
    except OverflowError:
        problem = problems.ENGINE_FAILED
    if problem is not None:
        context.log.event("engine.answer_failed", code=problem.code)
        await exchange.refuse(problem)  # with its status, if nothing of a stream was sent
        return
    if not exchange.writer.status:
        _start_stream(exchange, model)
    await exchange.finish()


def _start_stream(exchange: Exchange, model: ModelInfo) -> None:
    headers = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"))
    exchange.start(200, headers, model=model)
    exchange.context.metrics.first_piece_s.observe(exchange.elapsed())


async def _whole(exchange: Exchange, response: EngineResponse, model: ModelInfo) -> None:
    context = exchange.context
    with context.answers.share() as spend:
        try:
            body = await response.read(context.settings.limits.max_answer_bytes, spend)
            if exchange.translation is not None:
                body = exchange.translation.whole(body)
            else:
                check_whole(body)
        except EngineError as error:
            raise RefusedError(_engine_problem(error)) from None
        except ValueError:
            raise RefusedError(problems.ENGINE_FAILED) from None
        await exchange.answer(200, body, _JSON_HEADERS, model=model)


async def _refusal(response: EngineResponse) -> Problem:
    """Translate an engine's error; its body may repeat the prompt, so it is only searched."""
    try:
        body = await response.read(_MAX_ENGINE_ERROR)
    except (EngineError, ValueError):
        body = b""
    match response.status:
        case 400 | 413 | 422 if any(mark in body for mark in _CONTEXT_MARKS):
            return problems.CONTEXT_LENGTH
        case 400 | 413 | 422:
            return problems.ENGINE_REFUSED
        case 429 | 503:
            return problems.ENGINE_BUSY
        case _:
            # llama.cpp reports some of the client's mistakes as 500, a long prompt among them.
            marked = any(mark in body for mark in _CONTEXT_MARKS)
            return problems.CONTEXT_LENGTH if marked else problems.ENGINE_FAILED


def _engine_problem(error: EngineError) -> Problem:
    match error.code:
        case code if code == NOT_RUNNING:
            return problems.ENGINE_DOWN
        case code if code == AT_CAPACITY:
            return problems.AT_CAPACITY
        case code if code == REQUEST_REFUSED:
            # The engine's own code wrote this sentence; it names at most a field it knows.
            message = f"The engine refused: {error}."
            return problems.bad_request(message, code="engine_refused", param=error.field)
        case code if code == PATH_REFUSED:
            return problems.PATH_REFUSED
        case _:
            return problems.ENGINE_FAILED
