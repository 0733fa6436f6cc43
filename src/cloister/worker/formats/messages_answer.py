"""Anthropic's messages as chat completions: the answer, and its events in their official order.

Anthropic API reference, "Streaming Messages". Tokens of the prompt are known at the end only, so
``message_start`` counts none and ``message_delta``, whose counts are cumulative, counts all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, Final

from cloister.worker.formats.chat import Call, Piece, Usage
from cloister.worker.formats.translation import event
from cloister.worker.problems import Problem

_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class MessagesTelling:
    """See `cloister.worker.formats.translation.Telling`. One block is open at a time."""

    def __init__(
        self, *, model: str, stop_sequences: Collection[str], new_id: Callable[[str], str]
    ) -> None:
        self._stop_sequences = frozenset(stop_sequences)
        self._new_id = new_id
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._calls = 0
        self._finish: str | None = None
        self._stopped_at: str | None = None
        self._usage = Usage()
        self._content: list[tuple[dict[str, Any], str]] = []
        self._base: dict[str, Any] = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._ending: dict[str, Any] = {}

    @property
    def document(self) -> dict[str, Any]:
        """The message. ValueError if the arguments of a call are not an object."""
        cut = self._finish == "length"
        content = [
            _finished(block, text, cut=cut and number == len(self._content))
            for number, (block, text) in enumerate(self._content, 1)
        ]
        return {**self._base, "content": content, **self._ending, "usage": _counted(self._usage)}

    def begin(self) -> bytes:
        """Say that the message has begun."""
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**self._base, **empty, "usage": _counted(Usage())}
        return _event("message_start", message=message)

    def take(self, piece: Piece) -> bytes:
        """Say one piece."""
        events = b""
        if piece.reasoning:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            events += self._said(block, "thinking_delta", "thinking", piece.reasoning)
        if piece.text:
            events += self._said({"type": "text", "text": ""}, "text_delta", "text", piece.text)
        for call in piece.calls:
            events += self._called(call)
        if piece.finish is not None:
            self._finish, self._stopped_at = piece.finish, piece.stopped_at
        if piece.usage is not None:
            self._usage = piece.usage
        return events

    def end(self) -> bytes:
        """Say that it is over. ValueError if the engine never said why."""
        if self._finish is None:
            raise ValueError("an answer without an end")
        events = self._close()
        reason, sequence = _REASONS[self._finish], None
        if self._calls and self._finish == "stop":
            reason = "tool_use"  # some engines say that they stopped, after a call as well
        elif self._finish == "stop" and self._stopped_at in self._stop_sequences:
            reason, sequence = "stop_sequence", self._stopped_at
        self._ending = {"stop_reason": reason, "stop_sequence": sequence}
        usage = _counted(self._usage)
        ended = _event("message_delta", delta=self._ending, usage=usage)
        return events + ended + _event("message_stop")

    def failed(self, problem: Problem) -> bytes:
        """Say that it cannot go on."""
        return problem.event(anthropic=True)

    def _said(self, block: dict[str, Any], delta: str, member: str, text: str) -> bytes:
        events = b""
        if self._open is None or self._open["type"] != block["type"]:
            events = self._close() + self._start(block)
        self._texts.append(text)
        return events + self._delta(delta, member, text)

    def _called(self, call: Call) -> bytes:
        events = b""
        if call.index == self._calls:
            if not call.name:
                raise ValueError("a call of nothing")
            call_id = call.id or self._new_id("toolu")
            block = {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}
            events = self._close() + self._start(block)
            self._calls += 1
        elif (
            call.index != self._calls - 1 or self._open is None or self._open["type"] != "tool_use"
        ):
            raise ValueError("a call that is over goes on")
        if call.arguments:
            self._texts.append(call.arguments)
            events += self._delta("input_json_delta", "partial_json", call.arguments)
        return events

    def _start(self, block: dict[str, Any]) -> bytes:
        self._open = block
        return _event("content_block_start", index=len(self._content), content_block=block)

    def _delta(self, kind: str, member: str, text: str) -> bytes:
        return _event(
            "content_block_delta", index=len(self._content), delta={"type": kind, member: text}
        )

    def _close(self) -> bytes:
        block = self._open
        if block is None:
            return b""
        self._content.append((block, "".join(self._texts)))
        self._open, self._texts = None, []
        return _event("content_block_stop", index=len(self._content) - 1)


def _finished(block: dict[str, Any], text: str, *, cut: bool) -> dict[str, Any]:
    if block["type"] != "tool_use":
        return {**block, block["type"]: text}
    try:
        return {**block, "input": _arguments(text)}
    except ValueError:
        if cut:  # in the middle of its arguments: `stop_reason` says so
            return block
        raise


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as an object, which is how Anthropic has them. ValueError if they are none."""
    try:
        arguments = json.loads(text) if text else {}
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(arguments, dict):
        raise ValueError("not arguments")  # noqa: TRY004 - of the engine's making, not of ours
    return arguments


def _counted(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": max(0, usage.prompt - usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


def _event(name: str, **members: Any) -> bytes:
    return event(name, {"type": name, **members})
