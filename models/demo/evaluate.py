"""Grade a GGUF file: evaluate.py MODEL [QUESTIONS] [--samples 40] [--transcript FILE].

Two measures at temperature 0. Generated: fresh single exchanges of every class, compared word
for word with the generator's answer (any of them, where there are several). Natural: the
questions of a file (by default natural_test.toml), which the generator does not know, by key
words.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import tomllib
from pathlib import Path
from random import Random

from ask import Asker
from corpus.facts import load_facts
from corpus.turns import Turns, named_makers

NATURAL = Path(__file__).parent / "natural_test.toml"
SEED = 20_000  # of the fresh samples; training uses 1, the held-out set 999


def grade_generated(asker: Asker, samples: int) -> None:
    """Print exact matches per class, on the last exchange of each sample."""
    facts = load_facts()
    alternatives = {
        said: answer.say for answer in (*facts.cloister, *facts.chat) for said in answer.say
    }
    for kind, maker in named_makers(Turns(facts)).items():
        rng = Random(SEED)
        exact = 0
        for _ in range(samples):
            turns = maker(rng)
            messages = []
            for asked, said in turns:
                messages += [("user", asked), ("assistant", said)]
            _, expected = messages.pop()
            got = asker.ask(messages).strip()
            right = got in alternatives.get(expected, (expected,))
            exact += right
            if not right:
                print(f"  {kind}: {messages[-1][1]!r} -> {got!r}")
        print(f"{kind}: {exact}/{samples}")


def grade_natural(asker: Asker, questions: Path, transcript: list[str]) -> None:
    """Print how many natural questions are answered with one of their key words."""
    for group in tomllib.loads(questions.read_text(encoding="utf-8"))["group"]:
        right = 0
        for asked, words in group["questions"]:
            got = asker.ask([("user", asked)]).strip()
            found = any(word in got.lower() for word in words)
            right += found
            transcript.append(f"{'   ' if found else '** '}{asked}\n       {got}")
        print(f"natural, {group['name']}: {right}/{len(group['questions'])}")


def main() -> None:
    """Grade and leave without waiting for the engine's threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path, nargs="?", default=NATURAL)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--transcript", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asker = Asker(arguments.model, Path(directory))
        transcript: list[str] = []
        grade_natural(asker, arguments.questions, transcript)
        if arguments.transcript is not None:
            arguments.transcript.write_text("\n".join(transcript) + "\n", encoding="utf-8")
        if arguments.samples:
            grade_generated(asker, arguments.samples)
    os._exit(0)


if __name__ == "__main__":
    main()
