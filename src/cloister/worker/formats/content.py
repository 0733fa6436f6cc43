"""Addresses in what is asked: nothing is fetched for anybody, so only data may stand there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cloister.worker import problems
from cloister.worker.problems import RefusedError

NOT_FETCHED: Final = problems.bad_request(
    "`image_url` and its like must be data: URLs. A worker fetches nothing: whoever holds the "
    "address would learn of the conversation.",
    code="url_refused",
    param="image_url",
)


def check_addresses(messages: object) -> None:
    """RefusedError if a part of a message names anything but a ``data:`` URL.

    Looks at members called ``…_url`` of each part, text or object (OpenAI's ``image_url``; vLLM's
    ``video_url`` and ``audio_url``, also without a ``type``).
    """
    for part in _parts(messages):
        for name, value in part.items():
            if not name.endswith("_url"):
                continue
            url = value.get("url") if isinstance(value, dict) else value
            if url is not None and not is_data(url):
                raise RefusedError(NOT_FETCHED)


def is_data(url: object) -> bool:
    """Whether `url` holds its content itself (RFC 2397)."""
    return isinstance(url, str) and url[:5].lower() == "data:"


def _parts(messages: object) -> Iterator[Mapping[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part
