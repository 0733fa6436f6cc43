"""What of a request reaches an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.engine.llama import REFUSED_FIELDS, private_body
from cloister.engine.protocol import PATH_REFUSED, REQUEST_REFUSED, EngineRequest
from cloister.engine.requests import (
    MAX_DEPTH,
    METHODS,
    REACHING_FIELDS,
    decode_body,
    encode_body,
    encode_salted,
    method_of,
)
from cloister.errors import EngineError


def refused(body: bytes) -> str:
    with pytest.raises(EngineError) as caught:
        private_body(decode_body(body))
    assert caught.value.code == REQUEST_REFUSED
    return str(caught.value)


def test_paths() -> None:
    assert {path: method_of(path) for path in METHODS} == dict(METHODS)
    for path in ("/v1/responses", "/slots", "/v1/models/", "/V1/models", "/v1/models?x", ""):
        with pytest.raises(EngineError) as caught:
            method_of(path)
        assert caught.value.code == PATH_REFUSED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":[-1e999]}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5_000 + b"}",
    ],
)
def test_bodies_that_could_be_read_in_two_ways_are_refused(body: bytes) -> None:
    assert decode_body(b'{"a":1}') == {"a": 1}
    with pytest.raises(EngineError) as caught:
        decode_body(body)
    assert caught.value.code == REQUEST_REFUSED


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_a_body_is_only_so_deep(open_: str, close: str) -> None:
    def body(depth: int) -> bytes:
        within = open_ * (depth - 1) + "1" + close * (depth - 1)
        return f'{{"b":[],"a":{within},"c":{{"d":1}}}}'.encode()

    assert decode_body(body(MAX_DEPTH)).keys() == {"a", "b", "c"}
    with pytest.raises(EngineError, match="too deep"):
        decode_body(body(MAX_DEPTH + 1))
    wide = b'{"a":[' + b"[]," * (2 * MAX_DEPTH) + b"[]]}"
    assert len(decode_body(wide)["a"]) == 2 * MAX_DEPTH + 1


def test_what_is_sent_says_what_was_read() -> None:
    body = {"a": [1, 2.5, None, True, {"é": "\ud800\u2028"}], "b": 10**30}
    assert json.loads(encode_body(body)) == body
    assert decode_body(encode_body({"a": "é"})) == {"a": "é"}


def test_no_prompt_is_kept_whatever_the_caller_says() -> None:
    for body in (b'{"stream":true}', b'{"stream":true,"cache_prompt":false}'):
        sent, whole = private_body(decode_body(body))
        assert json.loads(sent) == {"stream": True, "cache_prompt": False}
        assert not whole
    for value in (b"true", b"1", b"0", b"null", b'"no"'):
        assert "cache_prompt" in refused(b'{"cache_prompt":%b}' % value)


def test_whole_answers_are_asked_for_as_streams() -> None:
    for body in (b"{}", b'{"stream":false}', b'{"stream":null}'):
        sent, whole = private_body(decode_body(body))
        assert whole
        assert json.loads(sent)["stream"] is True
        assert json.loads(sent)["stream_options"] == {"include_usage": True}
    assert "stream" in refused(b'{"stream":"yes"}')


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_fields_that_reach_into_the_engine_are_refused_by_name(field: str) -> None:
    private_body({"model": "m"})
    assert field in refused(json.dumps({"model": "m", field: 0}).encode())
    escaped = f"\\u{ord(field[0]):04x}{field[1:]}"
    assert field in refused(f'{{"{escaped}":0}}'.encode())


def sent_on(body: dict[str, Any], *, salted: bool = False) -> dict[str, Any]:
    request = EngineRequest(path="/v1/chat/completions", body=json.dumps(body).encode())
    sent: dict[str, Any] = json.loads(encode_salted(request, salted=salted, random_bytes=bytes))
    return sent


@pytest.mark.parametrize("field", sorted(REACHING_FIELDS))
@pytest.mark.parametrize("salted", [False, True])
def test_fields_that_reach_other_peoples_requests_are_refused(field: str, salted: bool) -> None:
    sent_on({"model": "m"}, salted=salted)
    with pytest.raises(EngineError, match=field) as caught:
        sent_on({"model": "m", field: "x"}, salted=salted)
    assert (caught.value.code, caught.value.field) == (REQUEST_REFUSED, field)


def test_what_names_requests_and_sessions_is_among_them() -> None:
    """vLLM and SGLang, as their protocol.py have them."""
    assert {"rid", "request_id", "session_id", "session_params", "priority"} <= REACHING_FIELDS
    assert {"ngram_corpus_id", "routed_dp_rank", "data_parallel_rank"} <= REACHING_FIELDS
    assert {"ec_transfer_params", "disagg_prefill_dp_rank"} <= REACHING_FIELDS


@pytest.mark.parametrize("salted", [False, True])
def test_what_is_said_of_media_is_looked_at(salted: bool) -> None:
    """As `cloister.engine.media_parts` has it."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert sent_on(body)["messages"] == body["messages"]
    body["messages"][0]["content"] = [{**part, "uuid": "SECRET"}]
    with pytest.raises(EngineError, match="uuid") as caught:
        sent_on(body, salted=salted)
    assert caught.value.code == REQUEST_REFUSED
    assert "SECRET" not in str(caught.value)


def test_a_refusal_and_a_request_show_nothing_of_the_body() -> None:
    for body in (b'{"SECRET":1,"SECRET":2}', b'{"id_slot":"SECRET"}', b"SECRET", b'{"SECRET":NaN}'):
        assert "SECRET" not in refused(body)
    assert "SECRET" not in repr(
        EngineRequest(path="/v1/models", body=b"SECRET", cache_domain="SECRET")
    )
