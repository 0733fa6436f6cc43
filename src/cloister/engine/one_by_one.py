"""Embeddings from llama.cpp, one input at a time.

Its server computes waiting inputs in one batch, which it cuts into parts of equal length for
all sequences in it; a mean over the tokens then covers the last part only, and one caller's
vector depends on the lengths of the others' inputs (seen with xllamacpp 2026.10.11549, a KV
cache that is not unified and inputs of 5 and 4 tokens). Alone, every input gets its own vector.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cloister.engine.protocol import EMBEDDINGS, PROTOCOL, EngineResponse
from cloister.engine.requests import encode_body
from cloister.errors import EngineError

_MAX_ANSWER: Final = 1 << 20  # bytes for one vector: 40,000 numbers

Ask = Callable[[str, str, bytes], Awaitable[EngineResponse]]


async def embed(
    ask: Ask, body: dict[str, Any], lock: asyncio.Lock
) -> tuple[EngineResponse | None, bytes]:
    """Return the engine's refusal, or None and the whole answer.

    EngineError (`PROTOCOL`) for an answer of another shape.
    """
    data: list[dict[str, Any]] = []
    tokens = 0
    shell: dict[str, Any] = {}
    for one in _inputs(body.get("input")):
        async with lock:
            response = await ask("POST", EMBEDDINGS, encode_body({**body, "input": one}))
            if response.status != 200:
                return response, b""
            try:
                shell = json.loads(await response.read(_MAX_ANSWER))
                [entry] = shell["data"]
                data.append({**entry, "index": len(data)})
                tokens += shell["usage"]["prompt_tokens"]
            except (ValueError, LookupError, TypeError, RecursionError):
                raise EngineError("the engine's answer has another shape", code=PROTOCOL) from None
    shell = {**shell, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return None, json.dumps(shell, separators=(",", ":")).encode()


def _inputs(value: object) -> list[object]:
    """A text and a list of tokens are one input; other lists hold one in each place."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return value
    return [value]
