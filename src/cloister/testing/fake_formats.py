"""What the fake engine says beside plain text: calls, vectors, and other APIs' own documents.

`native` serves OpenAI's responses and Anthropic's messages from the same `Answer`, the way a
server does that has them itself. It shares nothing with the worker's translation, so that one
test can ask both and expect the same.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
NATIVE_PATHS: Final = (RESPONSES, MESSAGES)
DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an answer ends with; `arguments` are the pieces in which it is streamed."""

    name: str
    arguments: tuple[str, ...] = ("{}",)
    id: str = "call_1"

    @property
    def joined(self) -> str:
        """All of the arguments."""
        return "".join(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What an answer says, apart from its pace."""

    model: str
    text: str
    pieces: tuple[str, ...]
    reasoning: tuple[str, ...]
    calls: tuple[ToolCall, ...]
    finish: str
    images: tuple[str, ...] = ()


def logprobs_of(token: str) -> dict[str, Any]:
    """One token's entry, as certain as any other."""
    entry = {"token": token, "bytes": list(token.encode()), "logprob": -0.5}
    return {**entry, "top_logprobs": [dict(entry)]}


# -- vectors, ranks, tokens ------------------------------------------------------------------------


def embeddings(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A vector for each input, from its length; in base64 if that is what was asked for."""
    given = body["input"]
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    vectors: list[object] = [vector_of(one) for one in inputs]
    if body.get("encoding_format") == "base64":
        vectors = [_base64(vector_of(one)) for one in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def vector_of(one: str | list[int]) -> list[float]:
    """What stands for an input: exact in 32 bits."""
    return [len(one) / 2**power for power in range(DIMENSIONS)]


def ranking(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Scores by how much of a document the query is."""
    results = [
        {"index": index, "relevance_score": text.count(body["query"]) / (1 + len(text))}
        for index, text in enumerate(body["documents"])
    ]
    return {"model": model, "usage": {"total_tokens": len(results)}, "results": results}


def tokens(body: Mapping[str, Any]) -> dict[str, Any]:
    """Code points."""
    return {"tokens": [ord(one) for one in body["prompt"]]}


# -- other APIs' documents -------------------------------------------------------------------------


def native(path: str, body: Mapping[str, Any], said: Said) -> tuple[str, bytes]:
    """Content type and body of an answer at one of `NATIVE_PATHS`."""
    events = _response_events(said) if path == RESPONSES else _message_events(said)
    if not body.get("stream"):
        document = _response(said) if path == RESPONSES else _message(said)
        return "application/json", json.dumps(document).encode()
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
    return "text/event-stream", "".join(lines).encode()


def _items(said: Said) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    items: list[tuple[dict[str, Any], tuple[str, ...]]] = []
    if said.reasoning:
        content = [{"type": "reasoning_text", "text": "".join(said.reasoning)}]
        item = {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}
        items.append((item, said.reasoning))
    if said.text:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
        items.append((item, said.pieces))
    for number, call in enumerate(said.calls):
        named = {"id": f"fc_{number}", "call_id": call.id, "name": call.name}
        item = {"type": "function_call", **named, "arguments": call.joined}
        items.append((item, call.arguments))
    return [({**item, "status": "completed"}, pieces) for item, pieces in items]


def _response(said: Said, status: str = "") -> dict[str, Any]:
    cut = said.finish == "length"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "status": status or ("incomplete" if cut else "completed"),
        "incomplete_details": {"reason": "max_output_tokens"} if cut and not status else None,
        "error": None,
        "model": said.model,
        "output": [] if status else [item for item, _ in _items(said)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "usage": None
        if status
        else {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": len(said.pieces),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 1 + len(said.pieces),
        },
    }


def _response_events(said: Said) -> list[dict[str, Any]]:
    begun = _response(said, "in_progress")
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for number, (item, pieces) in enumerate(_items(said)):
        where = {"output_index": number}
        about = {**where, "item_id": item["id"]}
        empty: dict[str, Any] = {**item, "status": "in_progress"}
        blank: dict[str, Any] = {"content": []}
        empty |= {"arguments": ""} if item["type"] == "function_call" else blank
        events.append({"type": "response.output_item.added", **where, "item": empty})
        if item["type"] == "function_call":
            stem, done = "response.function_call_arguments", {"arguments": item["arguments"]}
            events += [{"type": f"{stem}.delta", **about, "delta": one} for one in pieces]
            events.append({"type": f"{stem}.done", **about, "name": item["name"], **done})
        else:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            about["content_index"] = 0
            stem = f"response.{part['type']}"
            unsaid = {**part, "text": ""}
            events.append({"type": "response.content_part.added", **about, "part": unsaid})
            events += [{"type": f"{stem}.delta", **about, **more, "delta": one} for one in pieces]
            events.append({"type": f"{stem}.done", **about, **more, "text": part["text"]})
            events.append({"type": "response.content_part.done", **about, "part": part})
        events.append({"type": "response.output_item.done", **where, "item": item})
    ended = _response(said)
    events.append({"type": f"response.{ended['status']}", "response": ended})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _blocks(said: Said) -> list[tuple[dict[str, Any], str, tuple[str, ...]]]:
    blocks: list[tuple[dict[str, Any], str, tuple[str, ...]]] = []
    if said.reasoning:
        thought = {"type": "thinking", "thinking": "".join(said.reasoning), "signature": ""}
        blocks.append((thought, "thinking_delta", said.reasoning))
    if said.text:
        blocks.append(({"type": "text", "text": said.text}, "text_delta", said.pieces))
    for call in said.calls:
        used = {"type": "tool_use", "id": call.id, "name": call.name}
        block = {**used, "input": json.loads(call.joined)}
        blocks.append((block, "input_json_delta", call.arguments))
    return blocks


def _message(said: Said, *, begun: bool = False) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": [] if begun else [block for block, _, _ in _blocks(said)],
        "stop_reason": None if begun else _REASONS[said.finish],
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 0 if begun else len(said.pieces)},
    }


def _message_events(said: Said) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": _message(said, begun=True)}
    ]
    members = {"thinking_delta": "thinking", "text_delta": "text"}
    for index, (block, kind, pieces) in enumerate(_blocks(said)):
        member = members.get(kind, "partial_json")
        empty = {**block, "input": {}} if block["type"] == "tool_use" else {**block, member: ""}
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        for one in pieces:
            delta = {"type": kind, member: one}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    ended = _message(said)
    ending: dict[str, Any] = {"stop_reason": ended["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": ending, "usage": ended["usage"]})
    return [*events, {"type": "message_stop"}]
