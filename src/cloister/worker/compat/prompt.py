"""A conversation that arrives as one text, as messages; and what to leave out when it is long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

Messages = tuple[tuple[str, str], ...]
"""Role and content of each."""

_OPEN_ASSISTANT: Final = re.compile(r"<\|(system|prompter|assistant|endoftext)\|>")
_LLAMA: Final = re.compile(r"(\[INST\]|\[/INST\]|<s>|</s>)")
_LLAMA_SYSTEM: Final = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_ROLES: Final = {"system": SYSTEM, "prompter": USER, "assistant": ASSISTANT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the engine is asked."""

    messages: Messages = field(repr=False)
    history: bool = False
    """Whether old parts may be left out to make the rest fit."""
    marked: bool = True
    """Whether turns are told apart; otherwise the one message may be cut."""

    def shorter(self) -> Prompt | None:
        """Leave out the older half; None when nothing can be.

        A system message stays, and so does the last question.
        """
        if not self.history:
            return None
        if not self.marked:
            [(role, text)] = self.messages
            rest = text[(len(text) + 1) // 2 :].lstrip()
            return self._with(((role, rest),)) if rest else None
        first = 1 if self.messages[0][0] == SYSTEM else 0
        turns = self.messages[first:]
        kept = turns[max(1, len(turns) // 2) :]
        while kept and kept[0][0] != USER:
            kept = kept[1:]
        return self._with((*self.messages[:first], *kept)) if kept else None

    def _with(self, messages: Messages) -> Prompt:
        return Prompt(messages=messages, history=True, marked=self.marked)


def parse_prompt(text: str, *, history: bool = False) -> Prompt:
    """Read `text` as messages where it begins with the marks of a chat template.

    Known are those that clients of the replaced servers write: OpenAssistant's
    (``<|prompter|>…<|endoftext|><|assistant|>``) and Llama 2's (``[INST]…[/INST]``). The served
    model has a template of its own, which the engine applies; marks of another one inside it
    would only confuse. Any other text is one question.

    Raises ValueError when there is no question in it.
    """
    start = text.lstrip()
    marked = True
    if _OPEN_ASSISTANT.match(start):
        messages = tuple(_open_assistant(start))
    elif start.startswith("[INST]") or start.removeprefix("<s>").lstrip().startswith("[INST]"):
        messages = tuple(_llama(start))
    else:
        marked, messages = False, ((USER, text),)
    if not any(role == USER and content.strip() for role, content in messages):
        raise ValueError("there is no question")
    return Prompt(messages=messages, history=history, marked=marked)


def _open_assistant(text: str) -> Iterator[tuple[str, str]]:
    _, *parts = _OPEN_ASSISTANT.split(text)
    role, content = "", ""
    for mark, following in zip(parts[::2], parts[1::2], strict=True):
        if mark in _ROLES:
            if content.strip():
                yield role, content.strip()
            role, content = _ROLES[mark], following
        else:
            content += following  # after an end: still of the turn that ended
    if content.strip():
        yield role or USER, content.strip()


def _llama(text: str) -> Iterator[tuple[str, str]]:
    role = ASSISTANT
    for part in _LLAMA.split(text):
        match part:
            case "[INST]":
                role = USER
            case "[/INST]":
                role = ASSISTANT
            case "<s>" | "</s>":
                pass
            case _ if part.strip():
                found = _LLAMA_SYSTEM.match(part) if role == USER else None
                if found and found[1].strip():
                    yield SYSTEM, found[1].strip()
                content = (part[found.end() :] if found else part).strip()
                if content:
                    yield role, content
