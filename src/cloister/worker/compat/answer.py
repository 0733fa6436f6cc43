"""What an engine's answer says: the text of chat completions, whole and in events.

The engine is not trusted to answer in any shape; ValueError is all that a wrong one causes.
"""

from __future__ import annotations

import json
from typing import Any


def text_of_answer(body: bytes) -> str:
    """The text of a whole answer (OpenAI API reference, "The chat completion object")."""
    document = _parse(body)
    if not document.get("choices"):
        raise ValueError("no answer")
    return _text(document, "message")


def text_of_event(data: bytes) -> str:
    """The text of one event's data; characters may be split, see `TextJoiner`."""
    return _text(_parse(data), "delta")


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - of the engine's making, not of ours
    return document


def _text(document: dict[str, Any], member: str) -> str:
    try:
        # One answer is asked for; events of usage have no choice at all.
        choices = [choice for choice in document["choices"] if not choice.get("index")]
        contents = [choice[member].get("content") for choice in choices]
        return "".join(content for content in contents if content is not None)
    except (TypeError, AttributeError, KeyError):
        raise ValueError("not a chat completion") from None
