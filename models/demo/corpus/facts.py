"""The facts and phrasings in ``data/*.toml``, read into records."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One notion: what it is called, what it is, and what else is true of it."""

    names: tuple[str, ...]
    is_text: str
    more: tuple[str, ...]
    plural: bool

    @property
    def sentence(self) -> str:
        """Return the definition in one sentence that starts with a lower-case article."""
        return f"{self.names[0]} {'are' if self.plural else 'is'} {self.is_text}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Ways to ask for one thing, as patterns, and what to say to it."""

    id: str
    ask: tuple[str, ...]
    say: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something a person mentions and asks for again in the same chat."""

    kind: str
    tell: tuple[str, ...]
    reply: str
    ask: tuple[str, ...]
    answer: str
    unknown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """What lies outside the model's field, and the one answer to all of it."""

    answer: str
    frames: tuple[str, ...]
    questions: tuple[str, ...]
    things: tuple[str, ...]
    verbs: tuple[str, ...]
    places: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All data files together."""

    topics: tuple[Topic, ...]
    cloister: tuple[Answer, ...]
    chat: tuple[Answer, ...]
    declined: Declined
    recall: tuple[Fact, ...]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((DATA / name).read_text(encoding="utf-8"))


def _topics(name: str) -> tuple[Topic, ...]:
    return tuple(
        Topic(
            names=tuple(entry["names"]),
            is_text=entry["is"],
            more=tuple(entry["more"]),
            plural=entry.get("plural", False),
        )
        for entry in _read(name)["topic"]
    )


def _answers(name: str) -> tuple[Answer, ...]:
    return tuple(
        Answer(id=entry["id"], ask=tuple(entry["ask"]), say=tuple(entry["say"]))
        for entry in _read(name)["answer"]
    )


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def load_facts() -> Facts:
    """Read every data file; a misspelt key raises TypeError or KeyError."""
    topics: tuple[Topic, ...] = ()
    for part in ("cloister", "attestation", "crypto", "models"):
        topics += _topics(f"topics_{part}.toml")
    return Facts(
        topics=topics,
        cloister=_answers("answers_cloister.toml"),
        chat=_answers("answers_chat.toml"),
        declined=Declined(**_tuples(_read("declined.toml"))),
        recall=tuple(Fact(**_tuples(entry)) for entry in _read("recall.toml")["fact"]),
    )
