"""Train the byte-level BPE vocabulary: train_tokenizer.py DIALOGUES TOKENIZER."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chatml import END, END_OF_TEXT, START

VOCABULARY = 4096
SAMPLE = 20_000  # dialogues; more change the merges no further


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in islice(file, SAMPLE):
            for _, content in json.loads(line):
                yield content


def train_tokenizer(dialogues: Path) -> Tokenizer:
    """Return a tokenizer that splits as llama.cpp's pre-tokenizer "smollm" does.

    Digits stand alone, so that a code or marker is copied digit by digit; no byte is unknown.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(dialogues), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"only {tokenizer.get_vocab_size()} tokens: give it more dialogues")
    return tokenizer


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialogues", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    train_tokenizer(arguments.dialogues).save(str(arguments.out))


if __name__ == "__main__":
    main()
