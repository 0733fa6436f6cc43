"""A translated request and its answer on the way back, whole or event by event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cloister.worker.events import LineAssembler
from cloister.worker.formats.chat import Piece, parse_event, parse_whole
from cloister.worker.problems import Problem


class Telling(Protocol):
    """Says one answer in the asker's format: `begin`, any number of `take`, then `end`.

    Each returns events, maybe none. `take` and `end` raise ValueError when what the engine said
    makes no answer. `document` is the whole answer after `end`.
    """

    def begin(self) -> bytes: ...  # noqa: D102 - see the class

    def take(self, piece: Piece) -> bytes: ...  # noqa: D102

    def end(self) -> bytes: ...  # noqa: D102

    def failed(self, problem: Problem) -> bytes: ...  # noqa: D102

    @property
    def document(self) -> dict[str, Any]: ...  # noqa: D102


class Lines(Protocol):
    """Where an engine's stream goes in and the asker's comes out; see `LineAssembler`.

    `opening` is what is said before the first event, apart from it: padded by itself, it does
    not make every other event as large.
    """

    @property
    def opening(self) -> bytes: ...  # noqa: D102 - see the class

    @property
    def failed(self) -> bool: ...  # noqa: D102 - as there

    def feed(self, data: bytes) -> bytes: ...  # noqa: D102

    def rest(self) -> bytes: ...  # noqa: D102


class Translation(Protocol):
    """A request in the engine's words, and the way back of its answer."""

    def body(self) -> bytes:
        """What the engine gets."""

    def shorter(self) -> Translation | None:
        """The same with less of the past, for an engine that says it is too long."""

    def whole(self, body: bytes) -> bytes:
        """Translate a whole answer; ValueError if the engine's is none."""

    def lines(self, assembler: LineAssembler) -> Lines:
        """What a stream of the engine is fed to."""

    def failure(self, problem: Problem) -> bytes:
        """The last event of a stream that has begun and cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTranslation:
    """A request as a chat completion, and what says its answer."""

    request: Mapping[str, Any] = field(repr=False)
    telling: Telling = field(repr=False)
    max_answer: int
    """Bytes of an engine's stream that are read; the whole answer is kept until its end."""

    def body(self) -> bytes:
        """What the engine gets."""
        return encode(self.request)

    def shorter(self) -> None:
        """Nothing of a conversation is left out."""

    def whole(self, body: bytes) -> bytes:
        """Translate a whole answer; ValueError if the engine's is none."""
        self.telling.begin()
        self.telling.take(parse_whole(body))
        self.telling.end()
        return encode(self.telling.document)

    def lines(self, assembler: LineAssembler) -> Lines:
        """What a stream of the engine is fed to."""
        return ChatLines(assembler, self.telling, self.max_answer)

    def failure(self, problem: Problem) -> bytes:
        """The last event of a stream that has begun and cannot go on."""
        return self.telling.failed(problem)


class ChatLines:
    """Stands where `LineAssembler` does, and gives out the events of a `Telling`.

    `failed` is set by an error event of the engine as there, and besides by an event that is no
    chat completion's, by a stream that is too long and by an end without ``[DONE]``.
    """

    __slots__ = ("_begun", "_done", "_left", "_lines", "_telling", "failed", "opening")

    def __init__(self, lines: LineAssembler, telling: Telling, max_answer: int) -> None:
        self._lines = lines
        self._telling = telling
        self._left = max_answer
        self._begun = False
        self._done = False
        self.failed = False
        self.opening = b""

    def feed(self, data: bytes) -> bytes:
        """Take one read; return events. OverflowError when a line exceeds the limit."""
        self._left -= len(data)
        if self._left < 0:
            self.failed = True
            return b""
        events = self._translate(self._lines.feed(data))
        self.failed = self.failed or self._lines.failed
        return events

    def rest(self) -> bytes:
        """At the end of the stream: what ends it here, unless it `failed`."""
        events = self._translate(self._lines.rest())
        self.failed = self.failed or self._lines.failed or not self._done
        if self.failed:
            return events
        try:
            if not self._begun:
                raise ValueError("an answer without a beginning")
            return events + self._telling.end()
        except ValueError:
            self.failed = True
            return events

    def _translate(self, lines: bytes) -> bytes:
        return b"".join([self._one(line) for line in lines.split(b"\n")]) if lines else b""

    def _one(self, line: bytes) -> bytes:
        name, _, value = line.partition(b":")
        if name != b"data" or self._done or self.failed:
            return b""
        value = value.strip()
        if value == b"[DONE]":
            self._done = True
            return b""
        try:
            piece = parse_event(value)
            if not self._begun:
                self._begun, self.opening = True, self._telling.begin()
            return self._telling.take(piece)
        except ValueError:
            self.failed = True
            return b""


def encode(document: object) -> bytes:
    """Compact JSON in ASCII: halves of a character that an engine split are joined by readers."""
    return json.dumps(document, separators=(",", ":")).encode()


def event(name: str, document: object) -> bytes:
    """One event with a name (HTML Living Standard, "Server-sent events")."""
    return b"event: " + name.encode() + b"\ndata: " + encode(document) + b"\n\n"
