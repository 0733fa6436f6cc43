"""Cosmian's example of an LLM in a micro-service: ``/health`` and ``/generate``.

Stands in for the application of Cosmian/mse-example-gpt. It had a limit of 64 tokens, a fixed
seed and one answer at a time; here the engine's own limits hold, and sampling can be chosen.
"""

from __future__ import annotations

import base64
from typing import Any, Final
from urllib.parse import parse_qsl

from cloister.worker import problems
from cloister.worker.compat.prompt import parse_prompt
from cloister.worker.compat.text import json_text
from cloister.worker.compat.translation import Translation
from cloister.worker.generation import parse_object
from cloister.worker.problems import RefusedError
from cloister.worker.request import RequestFields

HEALTH: Final = "/health"
GENERATE: Final = "/generate"
PATHS: Final = frozenset((HEALTH, GENERATE))

SAMPLING: Final = frozenset(
    (
        "frequency_penalty",
        "max_tokens",
        "presence_penalty",
        "seed",
        "stop",
        "temperature",
        "top_p",
    )
)
"""Fields of chat completions that a POST may have beside its question."""

_NO_QUERY: Final = problems.bad_request(
    "Either `query` or `prompt` is needed.", code="bad_query", param="query"
)
_BAD_QUERY: Final = problems.bad_request(
    "`query` must be a text that asks something.", code="bad_query", param="query"
)
_BAD_PROMPT: Final = problems.bad_request(
    "`prompt` must be the base64 of a conversation in UTF-8.", code="bad_prompt", param="prompt"
)
_UNKNOWN_FIELD: Final = problems.bad_request(
    "There is a field that this path does not have.", code="unknown_field"
)


def translate(fields: RequestFields, body: bytes, *, model: str) -> Translation | None:
    """Translate one request; None for a question about health. RefusedError if it is wrong."""
    match fields.path, fields.method:
        case (path, "GET") if path == HEALTH:
            return None
        case (path, "GET") if path == GENERATE:
            return _streamed(_from_query(fields.query), {}, model)
        case (path, "POST") if path == GENERATE:
            return _posted(parse_object(body), model)
        case _:
            raise RefusedError(problems.WRONG_METHOD)


def document(text: str) -> bytes:
    """A whole answer."""
    return b'{"response":' + json_text(text) + b"}"


def event(number: int, text: str) -> bytes:
    """One event of a stream."""
    return b"id: %d\nevent: data\ndata: %b\n\n" % (number, json_text(text))


def end(number: int) -> bytes:
    """The event that ends a stream."""
    return b"id: %d\nevent: end\ndata: {}\n\n" % number


def _posted(members: dict[str, Any], model: str) -> Translation:
    rest = {name: value for name, value in members.items() if name not in ("query", "prompt")}
    if not rest.keys() <= SAMPLING:
        raise RefusedError(_UNKNOWN_FIELD)
    if ("query" in members) == ("prompt" in members):
        raise RefusedError(_NO_QUERY)
    if "prompt" in members:
        return _streamed(members["prompt"], rest, model)
    query = members["query"]
    try:
        if not isinstance(query, str):
            raise ValueError  # noqa: TRY004 - refused like an empty one
        prompt = parse_prompt(query)
    except ValueError:
        raise RefusedError(_BAD_QUERY) from None
    return Translation(
        model=model,
        prompt=prompt,
        parameters=rest,
        stream=False,
        document=document,
        event=event,
        end=end,
    )


def _streamed(encoded: object, parameters: dict[str, Any], model: str) -> Translation:
    try:
        if not isinstance(encoded, str):
            raise ValueError  # noqa: TRY004 - refused like what is no base64
        text = base64.b64decode(encoded, validate=True).decode()
        prompt = parse_prompt(text, history=True)
    except ValueError:
        raise RefusedError(_BAD_PROMPT) from None
    return Translation(
        model=model,
        prompt=prompt,
        parameters=parameters,
        stream=True,
        document=document,
        event=event,
        end=end,
    )


def _from_query(query: str) -> str:
    """The value of ``prompt``, the only field that the query may have."""
    try:
        # A plus is base64's: nobody writes a space there, and some forget to escape the plus.
        pairs = parse_qsl(
            query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=True, errors="strict"
        )
    except ValueError:
        raise RefusedError(_BAD_PROMPT) from None
    match pairs:
        case [("prompt", value)]:
            return value
        case _ if any(name != "prompt" for name, _ in pairs):
            raise RefusedError(_UNKNOWN_FIELD)
        case _:
            raise RefusedError(_BAD_PROMPT)
