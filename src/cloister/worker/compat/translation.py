"""One translated request, and its answer on the way back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.worker.compat.answer import text_of_answer, text_of_event
from cloister.worker.compat.prompt import Prompt
from cloister.worker.compat.text import TextJoiner
from cloister.worker.events import LineAssembler
from cloister.worker.problems import Problem

_DONE: Final = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What the engine is asked, and how its answer is said in the asker's words."""

    model: str
    prompt: Prompt = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)
    """Fields of chat completions beside model, messages and stream."""
    stream: bool
    document: Callable[[str], bytes]
    """A whole answer, from its text."""
    event: Callable[[int, str], bytes]
    """An event, from its number (from 1) and its text."""
    end: Callable[[int], bytes]
    """What ends a stream, from the number of the event after the last."""

    def body(self) -> bytes:
        """The body for the engine's path of chat completions."""
        messages = [{"role": role, "content": text} for role, text in self.prompt.messages]
        request: dict[str, Any] = {"model": self.model, "messages": messages, **self.parameters}
        if self.stream:
            request["stream"] = True
        return json.dumps(request, separators=(",", ":")).encode()

    def shorter(self) -> Translation | None:
        """The same with less of the past, for an engine that says it is too long."""
        prompt = self.prompt.shorter()
        return None if prompt is None else dataclasses.replace(self, prompt=prompt)

    def whole(self, body: bytes) -> bytes:
        """Translate a whole answer; ValueError if the engine's is none."""
        joiner = TextJoiner()
        return self.document(joiner.feed(text_of_answer(body)) + joiner.rest())

    def lines(self, assembler: LineAssembler) -> TranslatedLines:
        """What a stream of the engine is fed to."""
        return TranslatedLines(assembler, self)

    def failure(self, problem: Problem) -> bytes:
        """The last event of a stream that has begun and cannot go on."""
        return problem.event()


class TranslatedLines:
    """Stands where `LineAssembler` does, and gives out events of the other protocol.

    `failed` is set by an error event of the engine as there, and besides by an event that is no
    chat completion's and by an end without ``[DONE]``: then no ending is given out either.
    """

    __slots__ = ("_done", "_joiner", "_lines", "_number", "_translation", "failed")

    opening = b""

    def __init__(self, lines: LineAssembler, translation: Translation) -> None:
        self._lines = lines
        self._translation = translation
        self._joiner = TextJoiner()
        self._number = 1
        self._done = False
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Take one read; return events. OverflowError when a line exceeds the limit."""
        events = self._translate(self._lines.feed(data))
        self.failed = self.failed or self._lines.failed
        return events

    def rest(self) -> bytes:
        """At the end of the stream: what ends it here, unless it `failed`."""
        events = self._translate(self._lines.rest())
        self.failed = self.failed or self._lines.failed or not self._done
        if self.failed:
            return events
        return events + self._said(self._joiner.rest()) + self._translation.end(self._number)

    def _translate(self, lines: bytes) -> bytes:
        return b"".join([self._one(line) for line in lines.split(b"\n")])

    def _one(self, line: bytes) -> bytes:
        name, _, value = line.partition(b":")
        if name != b"data" or self._done or self.failed:
            return b""
        value = value.strip()
        if value == _DONE:
            self._done = True
            return b""
        try:
            return self._said(self._joiner.feed(text_of_event(value)))
        except ValueError:
            self.failed = True
            return b""

    def _said(self, text: str) -> bytes:
        if not text:
            return b""
        event = self._translation.event(self._number, text)
        self._number += 1
        return event
