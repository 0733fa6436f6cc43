"""ASGI applications that answer chats: one well-behaved, built like vLLM's server, and odd ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "served"


@dataclass(slots=True)
class Seen:
    """What the application was asked, and when it noticed that nobody listens any more."""

    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    clients: list[object] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    started: int = 0
    stopped: int = 0
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)


def chat_app(seen: Seen, *, endless: bool = False) -> Starlette:
    """An application that repeats the last message, word by word when streamed."""

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def health(request: Request) -> Response:
        note(request)
        return PlainTextResponse("all is well", headers={"x-inside": "told"})

    async def chat(request: Request) -> Response:
        body = await request.json()
        note(request)
        seen.bodies.append(body)
        text = body["messages"][-1]["content"]
        if text.startswith("raise "):
            raise ValueError(f"cannot answer {text}")
        if text.startswith("log "):
            logging.getLogger("app").error("asked: %s", text)
        if not body.get("stream"):
            return JSONResponse(completion(text), headers={"set-cookie": "a=1", "x-app": "told"})
        return StreamingResponse(
            events(text), media_type="text/event-stream", headers={"x-app": "told"}
        )

    async def events(text: str) -> AsyncIterator[bytes]:
        try:
            words = text.split() or [""]
            while True:
                for word in words:
                    yield chunk({"content": word + " "})
                    await asyncio.sleep(0)
                if not endless:
                    break
            yield chunk({}, finish="stop")
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            seen.abandoned.set()
            raise

    def note(request: Request) -> None:
        seen.headers.append(dict(request.headers))
        seen.clients.append(request.client)
        seen.paths.append(str(request.url))
        # As vLLM's handlers do: state that start-up left in the application and in the scope.
        if request.app.state.ready is not True or request.state.began is not True:
            raise RuntimeError("start-up left nothing")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        app.state.ready = True
        seen.started += 1
        yield {"began": True}
        seen.stopped += 1

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/health", health),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", chat, methods=["POST"]),
        ],
        lifespan=lifespan,
    )


def completion(text: str) -> dict[str, object]:
    """A whole answer that says `text`."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def chunk(delta: dict[str, object], *, finish: str | None = None) -> bytes:
    """One event of a streamed answer."""
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"
