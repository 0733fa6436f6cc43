"""Whole dialogues: a few turns after one another, sometimes under a system prompt."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from corpus import frames
from corpus.facts import load_facts
from corpus.turns import Turn, Turns

Message = tuple[str, str]
"""(role, content); the role is system, user or assistant."""

SYSTEM_SHARE = 0.25
# How many makers contribute to a dialogue. The long tail teaches positions up to the end of
# the context, which a chat in a terminal reaches.
_LENGTHS = (1, 2, 3, 4, 6, 9, 13)
_LENGTH_WEIGHTS = (68, 15, 7, 4, 3, 2, 1)


def dialogue(turns: Turns, rng: Random) -> list[Message]:
    """Return the messages of one dialogue."""
    makers, weights = zip(*turns.weighted(), strict=True)
    content: list[Turn] = []
    recalled = False
    for _ in range(rng.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]):
        maker = rng.choices(makers, weights)[0]
        if maker == turns.recall:
            # Two sets of remembered facts in one dialogue could contradict each other.
            if recalled:
                continue
            recalled = True
        content += maker(rng)
    if not content:
        content = turns.cloister(rng)
    messages: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append(("system", rng.choice(frames.SYSTEM)))
    for asked, said in content:
        messages += [("user", asked), ("assistant", said)]
    return messages


def dialogues(count: int, seed: int) -> Iterator[list[Message]]:
    """Yield `count` dialogues; equal seeds give equal dialogues on every machine."""
    rng = Random(seed)
    turns = Turns(load_facts())
    for _ in range(count):
        yield dialogue(turns, rng)
