"""The chat format: token ids, and which of them the training loss counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

USER_WEIGHT = 0.1
"""Loss weight of a token that a person typed: predicting questions teaches a little of how
words go together, but answers are what counts."""


@dataclass(frozen=True, slots=True)
class Example:
    """One dialogue: token ids, and the loss weight of each as a target."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def encode(messages: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> Example:
    """Return the tokens of a dialogue, cut at the end of the context."""
    newline = tokenizer.encode("\n").ids
    ids: list[int] = []
    weights: list[float] = []
    for role, content in messages:
        head = [START_ID, *tokenizer.encode(f"{role}\n").ids]
        body = tokenizer.encode(content).ids
        answer = role == "assistant"
        ids += [*head, *body, END_ID, *newline]
        weights += [0.0] * len(head) + [1.0 if answer else USER_WEIGHT] * len(body)
        weights += [1.0 if answer else 0.0] + [0.0] * len(newline)
    return Example(tuple(ids[:CONTEXT]), tuple(weights[:CONTEXT]))


def read_examples(path: Path, tokenizer: Tokenizer) -> list[Example]:
    """Encode every dialogue of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [encode(json.loads(line), tokenizer) for line in file]
