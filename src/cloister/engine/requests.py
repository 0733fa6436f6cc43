"""What of a request reaches an engine: which paths, and which fields of the body.

The body is decoded once, strictly, and encoded anew, so that the engine's JSON parser cannot
read anything else than what was checked here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from cloister.engine.media_parts import refused_medium
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    PATH_REFUSED,
    REQUEST_REFUSED,
    RERANK,
    TOKENIZE,
    EngineRequest,
)
from cloister.errors import EngineError

MAX_DEPTH: Final = 128
"""Of objects and lists in each other. What takes JSON apart or makes it may do so by calling
itself: Python ends that early, a native engine with its process."""

#: The method of each path an engine is asked for. There are no others.
METHODS: Final[Mapping[str, str]] = {
    CHAT_COMPLETIONS: "POST",
    COMPLETIONS: "POST",
    EMBEDDINGS: "POST",
    RERANK: "POST",
    TOKENIZE: "POST",
    MODELS: "GET",
    HEALTH: "GET",
}


#: What engines call a path that is not OpenAI's: vLLM, SGLang and llama.cpp agree on this one.
NATIVE: Final[Mapping[str, str]] = {TOKENIZE: "/tokenize"}


#: Fields of other engines' own that choose whose cached prefixes are used, or where they are sent,
#: that name requests, adapters or sessions, that put one request before others, or that carry code
#: or pickles. A name is more than a name: SGLang, when a request is given up, ends every other one
#: whose ``rid`` begins with its own.
REACHING_FIELDS: Final = frozenset(
    {
        # vLLM: vllm/entrypoints/openai/*/protocol.py
        "cache_salt", "ec_transfer_params", "kv_transfer_params", "priority", "prompt_embeds",
        "request_id", "session_id", "vllm_xargs",
        # SGLang: sglang/srt/entrypoints/openai/protocol.py
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "conversation_id",
        "custom_logit_processor", "data_parallel_rank", "disagg_prefill_dp_rank", "extra_key",
        "lora_path", "ngram_corpus_id", "rid", "routed_dp_rank", "session_params",
        # Text Generation Inference
        "adapter_id",
    }
)  # fmt: skip


def method_of(path: str, served: Collection[str] = METHODS.keys()) -> str:
    """Return the method for `path`; EngineError (`PATH_REFUSED`) if it is not `served`."""
    method = METHODS.get(path) if path in served else None
    if method is None:
        raise EngineError("the engine does not serve this path", code=PATH_REFUSED)
    return method


def decode_body(body: bytes) -> dict[str, Any]:
    """Decode a JSON object without repeated names, at most `MAX_DEPTH` deep.

    EngineError (`REQUEST_REFUSED`) otherwise, as for a number that JSON or a float does not have.
    """
    try:
        decoded = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except EngineError:
        raise
    except (ValueError, RecursionError):
        raise refuse("the body is not JSON") from None
    if not isinstance(decoded, dict):
        raise refuse("the body is not a JSON object")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deep(decoded):
        raise refuse("the body holds objects or lists too deep in each other")
    return decoded


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Encode what `decode_body` gave, in ASCII."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def encode_salted(
    request: EngineRequest, *, salted: bool, random_bytes: Callable[[int], bytes]
) -> bytes:
    """Return `request`'s body for a server whose cache of prefixes many share.

    With `salted` it is vLLM, which reuses prefixes only between requests of equal salt. Without a
    cache domain the salt is one that no other request has.
    """
    decoded = decode_body(request.body)
    for name in sorted(REACHING_FIELDS & decoded.keys()):
        raise refuse(f"the field '{name}' is not accepted here", field=name)
    medium = refused_medium(decoded)
    if medium is not None:
        raise refuse(medium)
    if salted:
        decoded["cache_salt"] = request.cache_domain or random_bytes(32).hex()
    return encode_body(decoded)


def refuse(message: str, *, field: str | None = None) -> EngineError:
    """Make the error for a request that is the caller's to change. Never put input into it."""
    return EngineError(message, code=REQUEST_REFUSED, field=field)


def _deep(decoded: dict[str, Any]) -> bool:
    level: list[Any] = [decoded]
    for _ in range(MAX_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise refuse("the body repeats a name in an object")
    return made


def _finite(digits: str) -> float:
    # What is too large for a float reads as infinity, which has no way back into JSON.
    value = float(digits)
    if math.isinf(value):
        raise refuse("the body holds a number that is too large")
    return value


def _no_constant(_: str) -> float:
    raise refuse("the body holds a number that JSON does not have")
