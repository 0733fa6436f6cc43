"""Requests of Triton's generate extension, read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.worker import problems
from cloister.worker.compat import translate
from cloister.worker.compat.translation import Translation
from cloister.worker.problems import RefusedError
from cloister.worker.request import RequestFields
from cloister.worker.settings import Dialect

ENSEMBLE = "/v2/models/ensemble/generate"
BLINDLLAMA = {"text_input": "hello", "max_tokens": 20, "bad_words": "", "stop_words": ""}
MODEL = "org/model-7b"
OTHER = "org/other-1b"


def read(body: object, path: str = ENSEMBLE, *, method: str = "POST") -> Translation:
    fields = RequestFields(
        method=method,
        path=path,
        query="",
        client_nonce=bytes(32),
        cache_secret=None,
        idempotency_key=None,
        bearer=None,
        date=0.0,
    )
    found = translate(Dialect.TRITON, fields, json.dumps(body).encode(), models=[MODEL, OTHER])
    assert found is not None
    return found


def asked(**fields: Any) -> dict[str, Any]:
    """What becomes of fields beside the text; model and messages are checked and left out."""
    document = json.loads(read({"text_input": "hello", **fields}).body())
    assert isinstance(document, dict)
    assert document.pop("model") == MODEL
    assert document.pop("messages") == [{"role": "user", "content": "hello"}]
    return document


def refused(body: object, path: str = ENSEMBLE, *, method: str = "POST") -> problems.Problem:
    with pytest.raises(RefusedError) as caught:
        read(body, path, method=method)
    return caught.value.problem


def test_the_request_that_blindllama_sends() -> None:
    translation = read(BLINDLLAMA)
    assert json.loads(translation.body()) == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 20,
    }
    assert not translation.stream
    assert translation.shorter() is None
    assert translation.whole(b'{"choices":[{"message":{"content":"hi"}}]}') == (
        b'{"model_name":"ensemble","model_version":"1","text_output":"hi"}'
    )


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/ensemble/generate",
        "/v2/models/ensemble/versions/1/generate",
        "/v2/models/org/model-7b/generate",
        "/v2/models/org%2Fmodel-7b/generate",
        "/v2/models/org%2fmodel-7b/versions/1/generate",
    ],
)
def test_names_of_the_model(path: str) -> None:
    name = "ensemble" if "ensemble" in path else MODEL
    said = json.loads(read(BLINDLLAMA, path).document("x"))
    assert said == {"model_name": name, "model_version": "1", "text_output": "x"}
    streamed = read(BLINDLLAMA, path + "_stream")
    assert streamed.stream
    assert json.loads(streamed.body())["stream"] is True
    assert streamed.event(7, "x") == b"data: " + streamed.document("x") + b"\n\n"
    assert streamed.end(8) == b""


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/canary/generate",
        "/v2/models/ensemble/versions/2/generate",
        "/v2/models/ensemble%2Fx/generate",
    ],
)
def test_other_models_are_not_served(path: str) -> None:
    problem = refused(BLINDLLAMA, path)
    assert problem is problems.UNKNOWN_MODEL


@pytest.mark.parametrize(
    "path", ["/v2/models/ensemble", "/v2/models/ensemble/ready", "/v2/models/generate"]
)
def test_other_paths_are_not_served(path: str) -> None:
    assert refused(BLINDLLAMA, path) is problems.UNKNOWN_PATH


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_methods_are_refused(method: str) -> None:
    assert refused(BLINDLLAMA, method=method) is problems.WRONG_METHOD


def test_fields_that_the_engine_knows() -> None:
    assert asked(temperature=0.5, top_k=3, top_p=0.9, random_seed=1) == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "seed": 1,
    }
    assert asked(parameters={"max_tokens": 5, "temperature": 0, "stream": False}) == {
        "max_tokens": 5,
        "temperature": 0,
    }


@pytest.mark.parametrize(
    ("words", "stop"),
    [
        ("", None),
        ([], None),
        ([""], None),
        ("end", ["end"]),
        (["one", "", "two"], ["one", "two"]),
    ],
)
def test_stop_words(words: object, stop: object) -> None:
    assert asked(stop_words=words).get("stop") == stop


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": []},
        {"bad_words": [""]},
        {"beam_width": 1},
        {"repetition_penalty": 1.0},
        {"return_log_probs": False},
        {"exclude_input_in_output": True},
        {"pad_id": 2, "end_id": 2},
        {"stream": False},
    ],
)
def test_values_that_ask_for_nothing_are_taken(fields: dict[str, Any]) -> None:
    assert asked(**fields) == {}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text_input": ""}, "bad_text_input"),
        ({"text_input": None}, "bad_text_input"),
        ({"text_input": ["canary"]}, "bad_text_input"),
        ({"bad_words": "canary"}, "bad_words_unsupported"),
        ({"bad_words": ["canary"]}, "bad_words_unsupported"),
        ({"stop_words": 1}, "bad_stop_words"),
        ({"stop_words": ["x", 1]}, "bad_stop_words"),
        ({"beam_width": 2}, "unknown_field"),
        ({"beam_width": True}, "unknown_field"),
        ({"return_log_probs": True}, "unknown_field"),
        ({"return_log_probs": 0}, "unknown_field"),
        ({"repetition_penalty": 1.1}, "unknown_field"),
        ({"end_id": "canary"}, "unknown_field"),
        ({"canary": 1}, "unknown_field"),
        ({"messages": []}, "unknown_field"),
        ({"parameters": []}, "bad_parameters"),
        ({"max_tokens": 1, "parameters": {"max_tokens": 1}}, "bad_parameters"),
        ({"seed": 1, "random_seed": 1}, "bad_parameters"),
        ({"stream": True}, "bad_stream"),
        ({"stream": 0}, "bad_stream"),
        ({"parameters": {"stream": True}}, "bad_stream"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], code: str) -> None:
    read(BLINDLLAMA)
    problem = refused({**BLINDLLAMA, **fields} if "max_tokens" not in fields else
                      {"text_input": "x", **fields})  # fmt: skip
    assert (problem.status, problem.code) == (400, code)
    assert b"canary" not in problem.body()


def test_the_stream_takes_no_other_stream() -> None:
    path = ENSEMBLE + "_stream"
    assert read({**BLINDLLAMA, "stream": True}, path).stream
    assert refused({**BLINDLLAMA, "stream": False}, path).code == "bad_stream"
