"""What an engine's chat completion says, whole or piece by piece, checked.

OpenAI API reference, "The chat completion object" and "The chat completion chunk object", with
``reasoning_content`` (llama.cpp, vLLM, SGLang) or ``reasoning`` (vLLM since 0.11, TGI).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_CALLS: Final = 128
"""Tool calls of one answer; the same bound as OpenAI's for tools of one request."""
_MAX_NAME: Final = 256
_MAX_COUNT: Final = 1 << 40
_FINISHED: Final = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A piece of one tool call; `name` and `id` come with its first."""

    index: int
    id: str = field(default="", repr=False)
    name: str = field(default="", repr=False)
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the engine counted them."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event says, or a whole answer."""

    reasoning: str = field(default="", repr=False)
    text: str = field(default="", repr=False)
    calls: tuple[Call, ...] = field(default=(), repr=False)
    logprobs: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    finish: str | None = None
    stopped_at: str | None = field(default=None, repr=False)
    """The stop sequence that was met, where the engine says which."""
    usage: Usage | None = None


def parse_whole(body: bytes) -> Piece:
    """Read a whole answer. ValueError for one that is none."""
    return _piece(_object(body), "message")


def parse_event(data: bytes) -> Piece:
    """Read one event's data. ValueError for one that is none."""
    return _piece(_object(data), "delta")


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("too deep") from None
    return _dict(document)


def _piece(document: dict[str, Any], member: str) -> Piece:
    choices = document.get("choices")
    usage = _usage(document.get("usage"))
    if not isinstance(choices, list):
        raise ValueError("not a chat completion")  # noqa: TRY004 - of the engine's making
    if not choices:
        return Piece(usage=usage)
    choice = _dict(choices[0])
    if len(choices) > 1 or choice.get("index", 0) != 0:
        raise ValueError("more answers than were asked for")
    said = _dict(choice.get(member) or {})
    finish = choice.get("finish_reason")
    if finish is not None and not (isinstance(finish, str) and finish in _FINISHED):
        raise ValueError("an unknown end")
    reasoning = said.get("reasoning_content")
    stopped_at = choice.get("stop_reason")
    return Piece(
        reasoning=_text(reasoning if reasoning is not None else said.get("reasoning")),
        text=_text(said.get("content")) + _text(said.get("refusal")),
        calls=_calls(said.get("tool_calls"), whole=member == "message"),
        logprobs=_logprobs(choice.get("logprobs")),
        finish=finish,
        stopped_at=stopped_at if isinstance(stopped_at, str) else None,
        usage=usage,
    )


def _calls(value: object, *, whole: bool) -> tuple[Call, ...]:
    listed = _list(value)
    if len(listed) > MAX_CALLS:
        raise ValueError("too many calls")
    return tuple(_call(_dict(one), number if whole else None) for number, one in enumerate(listed))


def _call(call: dict[str, Any], number: int | None) -> Call:
    index = call.get("index", 0) if number is None else number
    if type(index) is not int or not 0 <= index < MAX_CALLS:
        raise ValueError("not the number of a call")
    function = _dict(call.get("function") or {})
    return Call(
        index=index,
        id=_text(call.get("id"), _MAX_NAME),
        name=_text(function.get("name"), _MAX_NAME),
        arguments=_text(function.get("arguments")),
    )


def _logprobs(value: object) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    entries = _list(_dict(value).get("content"))
    return tuple(
        _token(_dict(entry))
        | {"top_logprobs": [_token(_dict(one)) for one in _list(entry.get("top_logprobs"))]}
        for entry in entries
    )


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    number, raw = entry.get("logprob"), _list(entry.get("bytes"))
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError("not a probability")  # noqa: TRY004 - of the engine's making
    if not all(type(one) is int and 0 <= one < 256 for one in raw):
        raise ValueError("not bytes")
    return {"token": _text(entry.get("token")), "logprob": number, "bytes": raw}


def _usage(value: object) -> Usage | None:
    if value is None:
        return None
    usage = _dict(value)
    return Usage(
        prompt=_count(usage, "prompt_tokens"),
        completion=_count(usage, "completion_tokens"),
        cached=_count(_dict(usage.get("prompt_tokens_details") or {}), "cached_tokens"),
        reasoning=_count(_dict(usage.get("completion_tokens_details") or {}), "reasoning_tokens"),
    )


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name) or 0
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError("not a count")
    return value


def _text(value: object, limit: int | None = None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or (limit is not None and len(value) > limit):
        raise ValueError("not a text")
    return value


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - of the engine's making, not of ours
    return value


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError("not a list")  # noqa: TRY004 - as above
    return value
