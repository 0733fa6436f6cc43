"""A small ASGI application with OpenAI's chat, to try a seal inside an engine without an engine.

``cloister serve --asgi cloister.testing.fake_application:app --model-name fake`` serves it. It
repeats what it was told, a word for each event when streamed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

MODEL: Final = "fake"
_MAX_BODY: Final = 1 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer one request. It takes no part in the lifespan protocol."""
    if scope["type"] != "http":
        raise RuntimeError("this application answers HTTP only")
    match (scope["method"], scope["path"]):
        case ("GET", "/v1/models"):
            listing = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            await _whole(send, 200, listing)
        case ("POST", "/v1/chat/completions"):
            await _chat(await _body(receive), send)
        case _:
            await _whole(send, 404, {"error": {"message": "There is nothing here."}})


async def _chat(body: dict[str, Any], send: Send) -> None:
    text = str(body["messages"][-1]["content"])
    if body.get("stream") is not True:
        message = {"role": "assistant", "content": text}
        await _whole(send, 200, _answer("chat.completion", "message", message, finish="stop"))
        return
    await _head(send, 200, b"text/event-stream")
    for word in text.split():
        await _event(send, _answer("chat.completion.chunk", "delta", {"content": word + " "}))
    await _event(send, _answer("chat.completion.chunk", "delta", {}, finish="stop"))
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _answer(
    kind: str, member: str, said: dict[str, str], *, finish: str | None = None
) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": kind,
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, member: said, "finish_reason": finish}],
    }


async def _body(receive: Receive) -> dict[str, Any]:
    data, more = b"", True
    while more and len(data) <= _MAX_BODY:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    decoded: dict[str, Any] = json.loads(data)
    return decoded


async def _whole(send: Send, status: int, document: dict[str, Any]) -> None:
    await _head(send, status, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def _event(send: Send, document: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(document).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _head(send: Send, status: int, content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
