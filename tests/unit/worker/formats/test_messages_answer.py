"""The events of a message, one piece of the engine's at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.worker.formats.chat import Call, Piece, Usage
from cloister.worker.formats.messages_answer import MessagesTelling
from cloister.worker.problems import ENGINE_FAILED

NOTHING = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


def telling(*stop_sequences: str) -> MessagesTelling:
    numbers = iter(range(100))
    return MessagesTelling(
        model="m",
        stop_sequences=stop_sequences,
        new_id=lambda prefix: f"{prefix}_{next(numbers)}",
    )


def read(events: bytes) -> list[dict[str, Any]]:
    made = []
    for block in events.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        made.append(document)
    return made


def test_text() -> None:
    made = telling()
    assert read(made.begin()) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_0",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": NOTHING,
            },
        }
    ]
    delta = {"type": "content_block_delta", "index": 0}
    assert read(made.take(Piece(text="a"))) == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {**delta, "delta": {"type": "text_delta", "text": "a"}},
    ]
    assert read(made.take(Piece(text="b"))) == [
        {**delta, "delta": {"type": "text_delta", "text": "b"}}
    ]
    made.take(Piece(finish="stop", usage=Usage(prompt=5, completion=2, cached=1)))
    usage = {**NOTHING, "input_tokens": 4, "cache_read_input_tokens": 1, "output_tokens": 2}
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    assert read(made.end()) == [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": usage},
        {"type": "message_stop"},
    ]
    assert made.document == {
        "id": "msg_0",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "ab"}],
        **ending,
        "usage": usage,
    }


def test_thinking_and_calls() -> None:
    made = telling()
    start, delta = read(made.take(Piece(reasoning="hm")))
    assert start["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert delta["delta"] == {"type": "thinking_delta", "thinking": "hm"}
    stop, start = read(made.take(Piece(calls=(Call(index=0, name="f"),))))
    assert (stop["type"], stop["index"]) == ("content_block_stop", 0)
    block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    assert (start["index"], start["content_block"]) == (1, block)
    [delta] = read(made.take(Piece(calls=(Call(index=0, arguments='{"a":1}'),))))
    assert delta["delta"] == {"type": "input_json_delta", "partial_json": '{"a":1}'}
    made.take(Piece(finish="tool_calls"))
    made.end()
    assert made.document["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {**block, "input": {"a": 1}},
    ]
    assert made.document["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("piece", "reason", "sequence"),
    [
        (Piece(finish="stop"), "end_turn", None),
        (Piece(finish="stop", stopped_at="X"), "stop_sequence", "X"),
        (Piece(finish="stop", stopped_at="canary"), "end_turn", None),
        (Piece(finish="length"), "max_tokens", None),
        (Piece(finish="content_filter"), "refusal", None),
        (Piece(finish="stop", calls=(Call(index=0, name="f"),)), "tool_use", None),
    ],
)
def test_reasons(piece: Piece, reason: str, sequence: str | None) -> None:
    made = telling("X")
    made.take(piece)
    made.end()
    assert (made.document["stop_reason"], made.document["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize("arguments", ["{", "[]", "1", "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    made = telling()
    made.take(Piece(calls=(Call(index=0, name="f", arguments=arguments),), finish="tool_calls"))
    assert made.end()  # who streams got the pieces
    with pytest.raises(ValueError, match=r"deep|arguments|Expecting"):
        _ = made.document
    cut = telling()
    cut.take(Piece(calls=(Call(index=0, name="f", arguments=arguments),), finish="length"))
    cut.end()
    assert cut.document["content"][0]["input"] == {}


def test_a_failure() -> None:
    [failed] = read(telling().failed(ENGINE_FAILED))
    assert failed["error"] == {
        "type": "api_error",
        "message": ENGINE_FAILED.message,
        "code": "engine_failed",
    }


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(text="t")],
        [Piece(calls=(Call(index=0),))],
        [Piece(calls=(Call(index=1, name="f"),))],
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
