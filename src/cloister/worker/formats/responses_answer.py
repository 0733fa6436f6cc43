"""OpenAI's responses as chat completions: the answer, and its events in their official order.

OpenAI API reference, "The response object" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.worker.formats.chat import Call, Piece, Usage
from cloister.worker.formats.translation import event
from cloister.worker.problems import Problem

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesTelling:
    """See `cloister.worker.formats.translation.Telling`.

    One item is open at a time; a piece of another kind closes it. `new_id` makes an id from its
    prefix, `created_at` is Unix time.
    """

    def __init__(
        self,
        repeated: Mapping[str, Any],
        *,
        model: str,
        new_id: Callable[[str], str],
        created_at: int,
    ) -> None:
        self._new_id = new_id
        self._sequence = 0
        self._open: _Item | None = None
        self._calls = 0
        self._finish: str | None = None
        self._usage = Usage()
        self._output: list[dict[str, Any]] = []
        self._base: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": created_at,
            "model": model,
            "error": None,
            **repeated,
        }
        self._document: dict[str, Any] = {}

    @property
    def document(self) -> dict[str, Any]:
        """The response object."""
        return self._document

    def begin(self) -> bytes:
        """Say that the response has begun."""
        response = self._response("in_progress")
        return b"".join(
            self._event(name, response=response)
            for name in ("response.created", "response.in_progress")
        )

    def take(self, piece: Piece) -> bytes:
        """Say one piece."""
        events = b""
        if piece.reasoning:
            events += self._said("reasoning", piece.reasoning)
        if piece.text or piece.logprobs:
            events += self._said("message", piece.text, piece.logprobs)
        for call in piece.calls:
            events += self._called(call)
        if piece.finish is not None:
            self._finish = piece.finish
        if piece.usage is not None:
            self._usage = piece.usage
        return events

    def end(self) -> bytes:
        """Say that it is over. ValueError if the engine never said why."""
        if self._finish is None:
            raise ValueError("an answer without an end")
        reason = _INCOMPLETE.get(self._finish)
        status = "completed" if reason is None else "incomplete"
        events = self._close(status)
        self._document = self._response(status) | {
            "incomplete_details": None if reason is None else {"reason": reason},
            "usage": self._counted(),
        }
        return events + self._event(f"response.{status}", response=self._document)

    def failed(self, problem: Problem) -> bytes:
        """Say that it cannot go on.

        With the members of OpenAI's error event, and `error` besides: its SDKs raise what is there.
        """
        said = {"code": problem.code, "message": problem.message, "param": problem.param}
        return self._event("error", **said, error={**said, "type": problem.kind})

    # -- items ---------------------------------------------------------------------------------

    def _said(self, kind: str, text: str, logprobs: tuple[dict[str, Any], ...] = ()) -> bytes:
        events = b""
        if self._open is None or self._open.kind != kind:
            events = self._close("completed") + self._start(_Item(kind, self._new_id))
        item = self._opened()
        item.texts.append(text)
        item.logprobs.extend(logprobs)
        more: dict[str, Any] = {"logprobs": list(logprobs)} if kind == "message" else {}
        return events + self._about(f"{item.stem}.delta", content_index=0, delta=text, **more)

    def _called(self, call: Call) -> bytes:
        events = b""
        if call.index == self._calls:
            if not call.name:
                raise ValueError("a call of nothing")
            events = self._close("completed") + self._start(
                _Item("function_call", self._new_id, call)
            )
            self._calls += 1
        elif call.index != self._calls - 1 or self._opened().kind != "function_call":
            raise ValueError("a call that is over goes on")
        if call.arguments:
            item = self._opened()
            item.texts.append(call.arguments)
            events += self._about(f"{item.stem}.delta", delta=call.arguments)
        return events

    def _start(self, item: _Item) -> bytes:
        self._open = item
        events = self._event(
            "response.output_item.added",
            output_index=len(self._output),
            item=item.document("in_progress", empty=True),
        )
        if item.kind != "function_call":
            part = item.part("", [])
            events += self._about("response.content_part.added", content_index=0, part=part)
        return events

    def _close(self, status: str) -> bytes:
        item = self._open
        if item is None:
            return b""
        text = "".join(item.texts)
        if item.kind == "function_call":
            name = item.document(status)["name"]
            events = self._about(f"{item.stem}.done", arguments=text, name=name)
        else:
            more: dict[str, Any] = {"logprobs": item.logprobs} if item.kind == "message" else {}
            part = item.part(text, item.logprobs)
            events = self._about(f"{item.stem}.done", content_index=0, text=text, **more)
            events += self._about("response.content_part.done", content_index=0, part=part)
        document = item.document(status)
        events += self._event(
            "response.output_item.done", output_index=len(self._output), item=document
        )
        self._output.append(document)
        self._open = None
        return events

    def _opened(self) -> _Item:
        if self._open is None:
            raise ValueError("nothing is being said")
        return self._open

    # -- documents -----------------------------------------------------------------------------

    def _response(self, status: str) -> dict[str, Any]:
        return {
            **self._base,
            "status": status,
            "incomplete_details": None,
            "output": list(self._output),
            "usage": None,
        }

    def _counted(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        }

    def _about(self, event_name: str, /, **members: Any) -> bytes:
        """An event about the open item."""
        where = {"item_id": self._opened().id, "output_index": len(self._output)}
        return self._event(event_name, **where, **members)

    def _event(self, event_name: str, /, **members: Any) -> bytes:
        numbered = {"type": event_name, "sequence_number": self._sequence, **members}
        self._sequence += 1
        return event(event_name, numbered)


class _Item:
    """One item of the output while it is being said."""

    __slots__ = ("_call_id", "_name", "id", "kind", "logprobs", "stem", "texts")

    PREFIXES: Final = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
    STEMS: Final = {
        "reasoning": "response.reasoning_text",
        "message": "response.output_text",
        "function_call": "response.function_call_arguments",
    }

    def __init__(self, kind: str, new_id: Callable[[str], str], call: Call | None = None) -> None:
        self.kind = kind
        self.id = new_id(self.PREFIXES[kind])
        self.stem = self.STEMS[kind]
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self._name = "" if call is None else call.name
        self._call_id = "" if call is None else call.id or new_id("call")

    def part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """The one part of its content."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}

    def document(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        """The item; `empty` as it is announced."""
        text = "".join(self.texts)
        made: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            called = {"call_id": self._call_id, "name": self._name}
            return {**made, **called, "arguments": "" if empty else text}
        content = [] if empty else [self.part(text, self.logprobs)]
        if self.kind == "reasoning":
            return {**made, "summary": [], "content": content}
        return {**made, "role": "assistant", "content": content}
