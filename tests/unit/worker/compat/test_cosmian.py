"""Requests to Cosmian's example, read."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from cloister.worker import problems
from cloister.worker.compat import dialect_of, translate
from cloister.worker.compat.translation import Translation
from cloister.worker.problems import RefusedError
from cloister.worker.request import RequestFields
from cloister.worker.settings import Dialect


def read(method: str, path: str, body: object = None, *, query: str = "") -> Translation | None:
    fields = RequestFields(
        method=method,
        path=path,
        query=query,
        client_nonce=bytes(32),
        cache_secret=None,
        idempotency_key=None,
        bearer=None,
        date=0.0,
    )
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return translate(Dialect.COSMIAN, fields, encoded, models=["m"])


def asked(translation: Translation | None) -> dict[str, Any]:
    assert translation is not None
    document = json.loads(translation.body())
    assert isinstance(document, dict)
    assert document["model"] == "m"
    return document


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_only_paths_that_are_switched_on_are_taken() -> None:
    both = frozenset(Dialect)
    assert dialect_of("/generate", both) is Dialect.COSMIAN
    assert dialect_of("/health", both) is Dialect.COSMIAN
    assert dialect_of("/v2/models/m/generate", both) is Dialect.TRITON
    assert dialect_of("/v1/chat/completions", both) is None
    assert dialect_of("/generate/", both) is None
    assert dialect_of("/generate", {Dialect.TRITON}) is None
    assert dialect_of("/v2/models/m/generate", {Dialect.COSMIAN}) is None
    assert dialect_of("/health", frozenset()) is None


def test_health_asks_nothing() -> None:
    assert read("GET", "/health") is None


def test_a_query_is_a_question() -> None:
    document = asked(read("POST", "/generate", {"query": "hello"}))
    assert document == {"model": "m", "messages": question("hello")}


def test_sampling_goes_to_the_engine() -> None:
    sampling = {"max_tokens": 7, "temperature": 0.5, "seed": 1, "stop": ["x"], "top_p": 1}
    sampling |= {"presence_penalty": 0, "frequency_penalty": 0}
    document = asked(read("POST", "/generate", {"query": "hello", **sampling}))
    assert document == {"model": "m", "messages": question("hello"), **sampling}


@pytest.mark.parametrize("text", ["hello", "a>>>?a~~~", "ünï😀", "x" * 20_000])
def test_a_prompt_comes_in_the_url_or_posted(text: str) -> None:
    for found in (
        read("GET", "/generate", b"", query=urlencode({"prompt": b64(text)})),
        read("GET", "/generate", b"", query=f"prompt={b64(text)}"),
        read("POST", "/generate", {"prompt": b64(text)}),
    ):
        assert asked(found) == {"model": "m", "messages": question(text), "stream": True}
        assert found is not None
        assert found.stream
        assert found.prompt.history


def refused(method: str, body: object = b"", *, query: str = "") -> problems.Problem:
    with pytest.raises(RefusedError) as caught:
        read(method, "/generate", body, query=query)
    return caught.value.problem


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "bad_query"),
        ({"query": ""}, "bad_query"),
        ({"query": "  "}, "bad_query"),
        ({"query": None}, "bad_query"),
        ({"query": ["x"]}, "bad_query"),
        ({"query": "x", "prompt": "eA=="}, "bad_query"),
        ({"prompt": ""}, "bad_prompt"),
        ({"prompt": 1}, "bad_prompt"),
        ({"prompt": "canary!"}, "bad_prompt"),
        ({"prompt": "eA"}, "bad_prompt"),
        ({"prompt": "/w=="}, "bad_prompt"),
        ({"query": "x", "canary": 1}, "unknown_field"),
        ({"query": "x", "model": "m"}, "unknown_field"),
        ({"query": "x", "stream": True}, "unknown_field"),
        ({"query": "x", "messages": []}, "unknown_field"),
        ([], "bad_json"),
        (b"", "bad_json"),
        (b'{"query":"x","query":"y"}', "bad_json"),
    ],
)
def test_a_wrong_post_is_refused(body: object, code: str) -> None:
    read("POST", "/generate", {"query": "x"})
    problem = refused("POST", body)
    assert (problem.status, problem.code) == (400, code)
    assert b"canary" not in problem.body()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_prompt"),
        ("prompt=", "bad_prompt"),
        ("prompt", "bad_prompt"),
        ("prompt=eA==&prompt=eA==", "bad_prompt"),
        ("prompt=eA==&max_tokens=1", "unknown_field"),
        ("canary=eA==", "unknown_field"),
        ("prompt=%ff", "bad_prompt"),
        ("prompt=eA%3D%3D%20", "bad_prompt"),
    ],
)
def test_a_wrong_query_is_refused(query: str, code: str) -> None:
    read("GET", "/generate", query="prompt=eA==")
    problem = refused("GET", query=query)
    assert (problem.status, problem.code) == (400, code)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "get"])
def test_other_methods_are_refused(method: str) -> None:
    assert refused(method, {"query": "x"}) is problems.WRONG_METHOD
    with pytest.raises(RefusedError):
        read("POST", "/health", {})
