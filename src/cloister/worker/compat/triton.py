"""Triton Inference Server's generate extension, with the fields of TensorRT-LLM's ensemble.

Triton's protocol extension "generate" (server, docs/protocol/extension_generate.md). A model is
called by its own name, the first one also ``ensemble``, as BlindLlama's client does, unless
another one has that name.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from cloister.worker import problems
from cloister.worker.compat.prompt import parse_prompt
from cloister.worker.compat.text import json_text
from cloister.worker.compat.translation import Translation
from cloister.worker.generation import parse_object
from cloister.worker.problems import RefusedError
from cloister.worker.request import RequestFields

PREFIX: Final = "/v2/models/"
ENSEMBLE: Final = "ensemble"
VERSION: Final = "1"
_PATH: Final = re.compile(r"/v2/models/(.+?)(?:/versions/([^/]+))?/(generate|generate_stream)")

RENAMED: Final[Mapping[str, str]] = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
    "random_seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Fields that the engine knows, and what they are called there."""
NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "bad_words": ("", [], [""]),
    "beam_width": (1,),
    "exclude_input_in_output": (True,),
    "len_penalty": (1,),
    "length_penalty": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "return_context_logits": (False,),
    "return_generation_logits": (False,),
    "return_log_probs": (False,),
}
"""Fields without a meaning here, and the values that ask for nothing; others are refused.

No engine field means what `bad_words` does: a bias acts on tokens, which other words share."""
_FROM_MODEL_FILE: Final = frozenset(("end_id", "pad_id"))
"""Token numbers that Triton has to be told; the model's file says them here."""

_NO_TEXT: Final = problems.bad_request(
    "`text_input` must be a text that asks something.", code="bad_text_input", param="text_input"
)
_BAD_PARAMETERS: Final = problems.bad_request(
    "`parameters` must be an object whose names do not stand beside it as well.",
    code="bad_parameters",
    param="parameters",
)
_BAD_STREAM: Final = problems.bad_request(
    "`stream` must be true for generate_stream and false for generate.",
    code="bad_stream",
    param="stream",
)
_BAD_STOP: Final = problems.bad_request(
    "`stop_words` must be a text or a list of texts.", code="bad_stop_words", param="stop_words"
)
_BAD_WORDS: Final = problems.bad_request(
    "`bad_words` is not supported: no engine here can keep a word out of its answer.",
    code="bad_words_unsupported",
    param="bad_words",
)
_UNKNOWN_FIELD: Final = problems.bad_request(
    "There is a field, or a value of one, that this path does not have.", code="unknown_field"
)


def translate(fields: RequestFields, body: bytes, *, models: Sequence[str]) -> Translation:
    """Translate one request; RefusedError if it is wrong."""
    found = _PATH.fullmatch(fields.path)
    if found is None:
        raise RefusedError(problems.UNKNOWN_PATH)
    if fields.method != "POST":
        raise RefusedError(problems.WRONG_METHOD)
    named = unquote(found[1])
    model = models[0] if named == ENSEMBLE and named not in models else named
    if model not in models or found[2] not in (None, VERSION):
        raise RefusedError(problems.UNKNOWN_MODEL)
    stream = found[3] == "generate_stream"
    members = _flattened(parse_object(body))
    if members.pop("stream", stream) is not stream:
        raise RefusedError(_BAD_STREAM)
    text = members.pop("text_input", None)
    try:
        if not isinstance(text, str):
            raise ValueError  # noqa: TRY004 - refused like an empty one
        prompt = parse_prompt(text)
    except ValueError:
        raise RefusedError(_NO_TEXT) from None
    answer = functools.partial(document, named)
    return Translation(
        model=model,
        prompt=prompt,
        parameters=_parameters(members),
        stream=stream,
        document=answer,
        event=lambda _, piece: b"data: " + answer(piece) + b"\n\n",
        end=lambda _: b"",
    )


def document(name: str, text: str) -> bytes:
    """One response object; `name` is the model's, as it was asked for."""
    head = json.dumps({"model_name": name, "model_version": VERSION}, separators=(",", ":"))
    return head[:-1].encode() + b',"text_output":' + json_text(text) + b"}"


def _flattened(members: dict[str, Any]) -> dict[str, Any]:
    """Fields beside ``parameters`` and in it mean the same."""
    parameters = members.pop("parameters", {})
    if not isinstance(parameters, dict) or parameters.keys() & members.keys():
        raise RefusedError(_BAD_PARAMETERS)
    return members | parameters


def _parameters(members: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in members.items():
        if name in RENAMED:
            if RENAMED[name] in result:
                raise RefusedError(_BAD_PARAMETERS)
            result[RENAMED[name]] = value
        elif name == "stop_words":
            result.update(_stop(value))
        elif not (_asks_nothing(name, value)):
            raise RefusedError(_BAD_WORDS if name == "bad_words" else _UNKNOWN_FIELD)
    return result


def _asks_nothing(name: str, value: object) -> bool:
    if name in _FROM_MODEL_FILE:
        return isinstance(value, int)
    # 1 and True are equal, but do not mean the same.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL.get(name, ())
    )


def _stop(words: object) -> dict[str, list[str]]:
    listed = [words] if isinstance(words, str) else words
    if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
        raise RefusedError(_BAD_STOP)
    named = [word for word in listed if word]  # clients send "" for none
    return {"stop": named} if named else {}
