"""The chat format: token ids, and which of them the training loss counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
END_OF_TEXT_ID, START_ID, END_ID = 0, 1, 2
CONTEXT = 1024

TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Jinja form of what `encode` does, stored in the GGUF file."""

USER_WEIGHT, HEAD_WEIGHT, TAIL_WEIGHT = 0.1, 1.0, 0.3
"""Loss weights. Predicting a question teaches a little of how words go together. The first
HEAD tokens of an answer decide which answer it is; the rest mostly follows from them."""
HEAD = 12
CUT_SHARE = 0.7
"""Of the training dialogues, those that end after HEAD tokens of the last answer: the same
computing then shows the network nearly twice as many questions."""


@dataclass(frozen=True, slots=True)
class Example:
    """One dialogue: token ids, and the loss weight of each as a target."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def _weights(role: str, length: int) -> list[float]:
    """Return the loss weights of a message's content and of the end token behind it."""
    if role != "assistant":
        return [USER_WEIGHT] * length + [0.0]
    head = min(HEAD, length + 1)
    return [HEAD_WEIGHT] * head + [TAIL_WEIGHT] * (length + 1 - head)


def encode(
    messages: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, cut: bool = False
) -> Example:
    """Return the tokens of a dialogue, ended by the context or, on request, by `HEAD`."""
    newline = tokenizer.encode("\n").ids
    ids: list[int] = []
    weights: list[float] = []
    end = CONTEXT
    for role, content in messages:
        head = [START_ID, *tokenizer.encode(f"{role}\n").ids]
        body = tokenizer.encode(content).ids
        if cut:
            end = min(CONTEXT, len(ids) + len(head) + HEAD)
        ids += [*head, *body, END_ID, *newline]
        weights += [0.0] * len(head) + _weights(role, len(body)) + [0.0] * len(newline)
    return Example(tuple(ids[:end]), tuple(weights[:end]))


def read_examples(path: Path, tokenizer: Tokenizer, cuts: Random | None = None) -> list[Example]:
    """Encode every dialogue of a file of JSON lines; with `cuts`, shorten many of them."""
    with path.open(encoding="utf-8") as file:
        return [
            encode(
                json.loads(line),
                tokenizer,
                cut=cuts is not None and cuts.random() < CUT_SHARE,
            )
            for line in file
        ]
