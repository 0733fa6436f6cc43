"""What of an engine's chat completion is read, and what makes it none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.worker.formats.chat import MAX_CALLS, Call, Usage, parse_event, parse_whole


def whole(**message: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def probable(**entry: Any) -> bytes:
    token = {"token": "a", "logprob": -0.5, "bytes": [97], **entry}
    choice = {"message": {"content": "a"}, "logprobs": {"content": [token]}}
    return json.dumps({"choices": [{**choice, "finish_reason": "stop"}]}).encode()


def call(name: str = "f") -> dict[str, Any]:
    return {"id": "c", "function": {"name": name, "arguments": "{}"}}


def test_what_is_read() -> None:
    piece = parse_whole(whole(content="a", reasoning_content="r", tool_calls=[call(), call()]))
    assert (piece.text, piece.reasoning, piece.finish) == ("a", "r", "stop")
    assert piece.calls == tuple(
        Call(index=index, id="c", name="f", arguments="{}") for index in range(2)
    )
    assert parse_whole(whole(content=None, reasoning="r")).reasoning == "r"
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": None,
    }
    read = parse_event(json.dumps({"choices": [], "usage": usage}).encode()).usage
    assert read == Usage(prompt=5, completion=2, cached=1)
    [entry] = parse_whole(probable()).logprobs
    assert entry == {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (whole(tool_calls=[call()] * MAX_CALLS), whole(tool_calls=[call()] * (MAX_CALLS + 1))),
        (whole(tool_calls=[call("f" * 256)]), whole(tool_calls=[call("f" * 257)])),
        (probable(bytes=[0, 255]), probable(bytes=[256])),
        (probable(bytes=None), probable(bytes=[True])),
        (probable(logprob=-1), probable(logprob=True)),
    ],
    ids=range(5),
)
def test_bounds(good: bytes, bad: bytes) -> None:
    parse_whole(good)
    with pytest.raises(ValueError, match=r"calls|text|bytes|probability"):
        parse_whole(bad)
