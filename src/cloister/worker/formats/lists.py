"""Embeddings, ranking, tokens: answers that come whole, and are made anew from what they hold."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.engine.protocol import EMBEDDINGS, RERANK, TOKENIZE, ModelInfo
from cloister.worker.events import LineAssembler
from cloister.worker.formats.fields import expect, wrong
from cloister.worker.formats.translation import Lines, encode
from cloister.worker.problems import Problem

ROUTES: Final[Mapping[str, str]] = {
    EMBEDDINGS: "embeddings",
    RERANK: "rerank",
    TOKENIZE: "tokenize",
}
MAX_INPUTS: Final = 2048
"""Texts in one request, as OpenAI's reference has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTranslation:
    """A request whose answer is read and said anew by `say`."""

    request: Mapping[str, Any] = field(repr=False)
    say: Callable[[dict[str, Any]], dict[str, Any]] = field(repr=False)

    def body(self) -> bytes:
        """What the engine gets."""
        return encode(self.request)

    def shorter(self) -> None:
        """Nothing is left out."""

    def whole(self, body: bytes) -> bytes:
        """The answer; ValueError if the engine's is none."""
        try:
            document = json.loads(body, parse_constant=_refuse)
            return encode(self.say(document))
        except (TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise ValueError("the engine's answer has another shape") from None

    def lines(self, assembler: LineAssembler) -> Lines:
        """None of these answers is streamed."""
        raise NotImplementedError

    def failure(self, problem: Problem) -> bytes:
        """As above."""
        raise NotImplementedError


def translate(path: str, document: dict[str, Any], model: ModelInfo) -> ListTranslation:
    """Check a request to one of `ROUTES`; RefusedError says what is wrong with it."""
    if document.get("stream"):
        raise wrong("stream", "This path does not stream.")
    match path:
        case _ if path == EMBEDDINGS:
            return _embeddings(document, model)
        case _ if path == RERANK:
            return _rerank(document, model)
        case _:
            return _tokenize(document, model)


# -- embeddings (OpenAI API reference, "Create embeddings") --------------------------------------


def _embeddings(document: dict[str, Any], model: ModelInfo) -> ListTranslation:
    kind = document.get("encoding_format") or "float"
    if kind not in ("float", "base64"):
        raise wrong("encoding_format", "`encoding_format` is float or base64.")
    count = _inputs(document.get("input"))

    def say(answer: dict[str, Any]) -> dict[str, Any]:
        vectors = [_vector(entry) for entry in sorted(answer["data"], key=_index)]
        if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
            raise ValueError("not one vector for each input")
        tokens = _tokens(answer)
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": vector if kind == "float" else _base64(vector),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    # Numbers are asked for in any case: they can be checked, and every engine gives them.
    return ListTranslation(request={**document, "encoding_format": "float"}, say=say)


def _inputs(value: object) -> int:
    """How many inputs there are: a text, tokens, or a list of either."""
    bad = wrong("input", f"`input` is a text, tokens, or 1 to {MAX_INPUTS} of either.")
    if isinstance(value, str) and value:
        return 1
    if not isinstance(value, list) or not value:
        raise bad
    if all(type(one) is int for one in value):
        return 1
    texts = all(isinstance(one, str) and one for one in value)
    tokens = all(isinstance(one, list) and one and _all_ints(one) for one in value)
    if not (texts or tokens) or len(value) > MAX_INPUTS:
        raise bad
    return len(value)


def _all_ints(values: list[Any]) -> bool:
    return all(type(one) is int for one in values)


def _vector(entry: dict[str, Any]) -> list[float]:
    vector = entry["embedding"]
    if not isinstance(vector, list) or not vector or not all(map(_is_number, vector)):
        raise ValueError("not a vector")
    return [float(one) for one in vector]


def _base64(vector: list[float]) -> str:
    """32-bit floats, little-endian, as OpenAI's SDKs decode them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


# -- ranking (Jina AI's and Cohere's API, as vLLM and llama.cpp serve it) ------------------------


def _rerank(document: dict[str, Any], model: ModelInfo) -> ListTranslation:
    expect(document.get("query"), str, "query")
    documents = expect(document.get("documents"), list, "documents")
    if not 1 <= len(documents) <= MAX_INPUTS or not all(isinstance(one, str) for one in documents):
        raise wrong("documents", f"`documents` are 1 to {MAX_INPUTS} texts.")
    top = document.get("top_n")
    top = len(documents) if top is None else expect(top, int, "top_n")
    if top < 1:
        raise wrong("top_n", "`top_n` is at least 1.")
    with_texts = document.get("return_documents", False)
    expect(with_texts, bool, "return_documents")

    def say(answer: dict[str, Any]) -> dict[str, Any]:
        scores = {_index(entry): _score(entry) for entry in answer["results"]}
        if len(scores) != len(answer["results"]) or not scores.keys() <= set(range(len(documents))):
            raise ValueError("not a ranking of these documents")
        ranked = sorted(scores.items(), key=lambda pair: -pair[1])[:top]
        return {
            "model": model.name,
            "usage": {"total_tokens": _tokens(answer)},
            "results": [
                {"index": index, "relevance_score": score}
                | ({"document": {"text": documents[index]}} if with_texts else {})
                for index, score in ranked
            ],
        }

    request = {name: value for name, value in document.items() if name != "return_documents"}
    return ListTranslation(request=request, say=say)


def _score(entry: dict[str, Any]) -> float:
    score = entry["relevance_score"]
    if not _is_number(score):
        raise ValueError("not a score")
    return float(score)


# -- tokens (vLLM's "Tokenizer API") -------------------------------------------------------------


def _tokenize(document: dict[str, Any], model: ModelInfo) -> ListTranslation:
    if ("prompt" in document) == ("messages" in document):
        raise wrong("prompt", "Either `prompt` or `messages` is needed.")
    if "prompt" in document:
        expect(document["prompt"], str, "prompt")
    if document.get("add_special_tokens") is not None:
        expect(document["add_special_tokens"], bool, "add_special_tokens")

    def say(answer: dict[str, Any]) -> dict[str, Any]:
        tokens = answer["tokens"]
        if not isinstance(tokens, list) or not all(type(one) is int and one >= 0 for one in tokens):
            raise ValueError("not tokens")
        said: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": model.context_length or None,
            "tokens": tokens,
        }
        texts = answer.get("token_strs")
        if texts is not None:
            if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
                raise ValueError("not the texts of tokens")
            said["token_strs"] = texts
        return said

    return ListTranslation(request=document, say=say)


def _index(entry: dict[str, Any]) -> int:
    index = entry["index"]
    if type(index) is not int or index < 0:
        raise ValueError("not an index")
    return index


def _tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage") or {}
    count = usage.get("prompt_tokens") or usage.get("total_tokens") or 0
    if type(count) is not int or not 0 <= count < 1 << 40:
        raise ValueError("not a count")
    return count


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # What a 32-bit float cannot hold is nothing that a model computed.
    return math.isfinite(value) and abs(value) < 3.4e38


def _refuse(_: str) -> None:
    raise ValueError("a number that JSON does not have")
