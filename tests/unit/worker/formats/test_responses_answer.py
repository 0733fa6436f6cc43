"""The events of a response, one piece of the engine's at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.worker.formats.chat import Call, Piece, Usage
from cloister.worker.formats.responses_answer import ResponsesTelling
from cloister.worker.problems import ENGINE_FAILED


def telling() -> ResponsesTelling:
    numbers = iter(range(100))
    return ResponsesTelling(
        {"store": False},
        model="m",
        new_id=lambda prefix: f"{prefix}_{next(numbers)}",
        created_at=7,
    )


def read(events: bytes) -> list[dict[str, Any]]:
    made = []
    for block in events.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        made.append(document)
    return made


def test_it_begins() -> None:
    created, in_progress = read(telling().begin())
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (in_progress["type"], in_progress["sequence_number"]) == ("response.in_progress", 1)
    assert created["response"] == in_progress["response"]
    assert created["response"] == {
        "id": "resp_0",
        "object": "response",
        "created_at": 7,
        "model": "m",
        "error": None,
        "store": False,
        "status": "in_progress",
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }


def test_text() -> None:
    made = telling()
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    item = {"id": "msg_1", "type": "message", "role": "assistant"}
    assert read(made.take(Piece(text="a"))) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 0,
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", "sequence_number": 1, **where, "part": empty},
        {
            "type": "response.output_text.delta",
            "sequence_number": 2,
            **where,
            "delta": "a",
            "logprobs": [],
        },
    ]
    entry = {"token": "b", "bytes": [98], "logprob": -0.5, "top_logprobs": []}
    assert read(made.take(Piece(text="b", logprobs=(entry,)))) == [
        {
            "type": "response.output_text.delta",
            "sequence_number": 3,
            **where,
            "delta": "b",
            "logprobs": [entry],
        }
    ]
    usage = Usage(prompt=5, completion=2, cached=1, reasoning=1)
    assert made.take(Piece(finish="stop", usage=usage)) == b""
    part = {**empty, "text": "ab", "logprobs": [entry]}
    whole = {**item, "status": "completed", "content": [part]}
    *events, completed = read(made.end())
    assert events == [
        {
            "type": "response.output_text.done",
            "sequence_number": 4,
            **where,
            "text": "ab",
            "logprobs": [entry],
        },
        {"type": "response.content_part.done", "sequence_number": 5, **where, "part": part},
        {
            "type": "response.output_item.done",
            "sequence_number": 6,
            "output_index": 0,
            "item": whole,
        },
    ]
    assert completed["type"] == "response.completed"
    assert completed["response"] == made.document
    assert made.document["output"] == [whole]
    assert made.document["status"] == "completed"
    assert made.document["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 7,
    }


def test_a_call() -> None:
    made = telling()
    item = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f"}
    about = {"item_id": "fc_1", "output_index": 0}
    assert read(made.take(Piece(calls=(Call(index=0, id="c", name="f"),)))) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 0,
            "output_index": 0,
            "item": {**item, "status": "in_progress", "arguments": ""},
        }
    ]
    assert read(made.take(Piece(calls=(Call(index=0, arguments="{}"),)))) == [
        {
            "type": "response.function_call_arguments.delta",
            "sequence_number": 1,
            **about,
            "delta": "{}",
        }
    ]
    # The next one ends it.
    assert [
        event["type"] for event in read(made.take(Piece(calls=(Call(index=1, name="g"),))))
    ] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
    ]
    made.take(Piece(finish="tool_calls"))
    done = read(made.end())
    assert [event["type"] for event in done][-1] == "response.completed"
    assert made.document["output"] == [
        {**item, "status": "completed", "arguments": "{}"},
        {
            "id": "fc_2",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_3",  # the engine gave none
            "name": "g",
            "arguments": "",
        },
    ]


def test_reasoning_then_text_then_reasoning() -> None:
    made = telling()
    for piece in (
        Piece(reasoning="r"),
        Piece(text="t"),
        Piece(reasoning="s"),
        Piece(finish="stop"),
    ):
        made.take(piece)
    made.end()
    kinds = [(item["type"], item["content"][0]["text"]) for item in made.document["output"]]
    assert kinds == [("reasoning", "r"), ("message", "t"), ("reasoning", "s")]
    assert made.document["output"][0]["summary"] == []


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut(finish: str, reason: str) -> None:
    made = telling()
    made.take(Piece(text="t"))
    made.take(Piece(finish=finish))
    last = read(made.end())[-1]
    assert last["type"] == "response.incomplete"
    assert made.document["incomplete_details"] == {"reason": reason}
    assert made.document["output"][0]["status"] == "incomplete"


def test_a_failure_has_a_number_of_its_own() -> None:
    made = telling()
    made.begin()
    [failed] = read(made.failed(ENGINE_FAILED))
    said = {"code": "engine_failed", "message": ENGINE_FAILED.message, "param": None}
    error = {**said, "type": "server_error"}
    assert failed == {"type": "error", "sequence_number": 2, **said, "error": error}


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(text="t")],
        [Piece(calls=(Call(index=0),))],
        [Piece(calls=(Call(index=1, name="f"),))],
        [Piece(calls=(Call(index=0, name="f"),)), Piece(calls=(Call(index=2, name="g"),))],
        [
            Piece(calls=(Call(index=0, name="f"),)),
            Piece(calls=(Call(index=1, name="g"),)),
            Piece(calls=(Call(index=0, arguments="x"),)),
        ],
        [
            Piece(calls=(Call(index=0, name="f"),)),
            Piece(text="t"),
            Piece(calls=(Call(index=0, arguments="x"),)),
        ],
    ],
)
def test_what_makes_no_answer(pieces: list[Piece]) -> None:
    made = telling()
    with pytest.raises(ValueError, match=r"call|end"):
        for piece in pieces:
            made.take(piece)
        made.end()
