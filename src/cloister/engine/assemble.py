"""Makes one whole answer out of a streamed one.

llama.cpp looks whether its caller is still there each time it writes an event of a stream; for
an answer that is not streamed it looks only after a second in which no request at all made
progress, so a busy engine would compute given-up answers to their end. The engine is therefore
always asked for a stream, and the answer is put together here, in the shape that the engine
itself gives whole answers (OpenAI API reference, "Create chat completion", "The chat completion
chunk object").
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from cloister.engine.budget import PER_VALUE, Spend
from cloister.engine.protocol import PROTOCOL, TRUNCATED
from cloister.errors import EngineError

MAX_ANSWER: Final = 64 << 20  # bytes of all events; token probabilities are what makes it long


async def events(chunks: AsyncIterator[bytes], spend: Spend) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events, up to ``[DONE]``.

    EngineError for a stream that is too long, does not decode, or ends without ``[DONE]``.
    """
    held: list[bytes] = []  # pieces of a line: joined once, however many there are
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        spend(len(chunk) + PER_VALUE * chunk.count(b","))
        if total > MAX_ANSWER:
            raise EngineError("the engine's answer is too long", code=PROTOCOL)
        if b"\n" not in chunk:
            held.append(chunk)
            continue
        *lines, rest = b"".join([*held, chunk]).split(b"\n")
        held = [rest]
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield _object(data)
    raise EngineError("the engine's answer ended early", code=TRUNCATED)


def _object(data: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise EngineError("the engine's answer does not decode", code=PROTOCOL)
    return decoded


def _refuse(_: str) -> None:
    raise ValueError


async def assemble(
    chunks: AsyncIterator[bytes], spend: Spend = lambda _: None
) -> tuple[int, bytes]:
    """Return status and body of the whole answer whose stream `chunks` is.

    `spend` is told of the memory that it takes. An error in mid-stream becomes the whole answer,
    with its own status.
    """
    shell: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    try:
        async for event in events(chunks, spend):
            if "error" in event:
                return _status(event["error"]), _encode(event)
            for choice in event.pop("choices"):
                _merge_choice(choices.setdefault(choice["index"], {}), choice)
            shell.update(event)
        shell["choices"] = [_joined(choices[index]) for index in sorted(choices)]
        if shell.get("object") == "chat.completion.chunk":
            shell["object"] = "chat.completion"
        return 200, _encode(shell)
    except (LookupError, TypeError, AttributeError, RecursionError):
        raise EngineError("the engine's answer has another shape", code=PROTOCOL) from None


def _status(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _encode(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half a character; as an escape it is JSON
        return json.dumps(document, separators=(",", ":")).encode("ascii")


class _Parts(list[str]):
    """A text in pieces: joined once, since adding piece to piece copies what is there each time."""


def _add(made: dict[str, Any], name: str, value: str) -> None:
    parts = made.get(name)
    if not isinstance(parts, _Parts):
        parts = made[name] = _Parts()
    parts.append(value)


def _joined(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message", {})
    calls = [call["function"] for call in message.get("tool_calls", [])]
    for made in (choice, message, *calls):
        for name, value in made.items():
            if isinstance(value, _Parts):
                made[name] = "".join(value)
    return choice


def _merge_choice(made: dict[str, Any], choice: dict[str, Any]) -> None:
    for name, value in choice.items():
        if name == "delta":
            _merge_message(made.setdefault("message", {}), value)
        elif name == "text":
            _add(made, "text", value)
        elif name == "logprobs" and value:
            _merge_lists(made.setdefault("logprobs", {}), value)
        elif value is not None or name not in made:
            made[name] = value


def _merge_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _merge_calls(message.setdefault("tool_calls", []), value)
        elif name != "role" and isinstance(value, str):
            _add(message, name, value)
        elif value is not None or name not in message:
            message[name] = value


def _merge_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        if delta["index"] == len(calls):
            calls.append({"function": {"name": _Parts(), "arguments": _Parts()}})
        call = calls[delta["index"]]
        for name, value in delta.get("function", {}).items():
            _add(call["function"], name, value)
        call.update({name: delta[name] for name in ("id", "type") if name in delta})


def _merge_lists(made: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, list) and isinstance(made.get(name), list):
            made[name] += value
        else:
            made[name] = value
