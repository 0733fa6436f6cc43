"""How people put a question: alternatives, fillers, sloppy spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")

Slots = Mapping[str, Callable[[Random], str]]

PREFIXES = (
    *("Please tell me: ", "Hi, ", "Hello. ", "Hey, ", "One question: ", "Quick question: ", "So "),
    *("I have a question. ", "And ", "Ok, ", "Tell me, ", "I am new here. ", "Sorry, ", "Well, "),
    *("Just curious: ", "Thanks. ", "I wonder: ", "Hm, ", "But ", "By the way, ", "Now, "),
    *("Hello, ", "Please, ", "A question: ", "Hi! ", "Let me ask: ", "Actually, "),
)
SUFFIXES = (
    *(" Please.", " Thanks.", " Thank you.", " Please explain.", " I am curious."),
    *(" I would like to know.", " Be brief.", " Keep it short.", " In simple words please."),
)
CONTRACTIONS = (
    *(("What is", "What's"), ("what is", "what's"), ("do not", "don't"), ("Do not", "Don't")),
    *(("I am", "I'm"), ("cannot", "can't"), ("does not", "doesn't"), ("is not", "isn't")),
    *(("Who is", "Who's"), ("How is", "How's"), ("are not", "aren't"), ("it is", "it's")),
)
SHORTHAND = (("you", "u"), ("are", "r"), ("please", "pls"), ("your", "ur"), ("what", "wat"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def expand(pattern: str, rng: Random, slots: Slots) -> str:
    """Choose one alternative in every [a|b], innermost first, then fill every {slot}."""
    while True:
        pattern, count = _CHOICE.subn(lambda m: rng.choice(m[1].split("|")), pattern)
        if not count:
            break
    return _SLOT.sub(lambda m: slots[m[1]](rng) if m[1] in slots else m[0], pattern)


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _wrapped(text: str, rng: Random) -> str:
    """Put a filler in front of or behind a whole question."""
    if rng.random() < 0.16:
        prefix = rng.choice(PREFIXES)
        keep = text.startswith("I ") or not prefix.endswith((", ", "So ", "And ", "But "))
        text = prefix + (text if keep else _uncapitalised(text))
    if rng.random() < 0.04 and text.endswith(("?", ".")):
        text += rng.choice(SUFFIXES)
    return text


def _uncapitalised(text: str) -> str:
    first = text.split(" ", 1)[0]
    # A name such as TDX or OpenAI keeps its capitals.
    return text if any(letter.isupper() for letter in first[1:]) else text[:1].lower() + text[1:]


def misspelt(text: str, rng: Random) -> str:
    """Make one slip of the keyboard in one longer word."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 3 and word[:3].isalpha()]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    match rng.randrange(4):
        case 0:
            word = word[:at] + word[at + 1 :]
        case 1:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 2:
            word = word[:at] + word[at] + word[at:]
        case _:
            word = word[:at] + rng.choice(LETTERS) + word[at + 1 :]
    words[index] = word
    return " ".join(words)


def _replaced(text: str, pairs: tuple[tuple[str, str], ...], rng: Random) -> str:
    found = [pair for pair in pairs if re.search(rf"\b{pair[0]}\b", text)]
    if not found:
        return text
    old, new = rng.choice(found)
    return re.sub(rf"\b{old}\b", new, text, count=1)


def as_typed(text: str, rng: Random, *, fillers: bool = True) -> str:
    """Vary a well-written question into what somebody might really type."""
    if fillers and len(text.split()) > 2:
        text = _wrapped(text, rng)
    if rng.random() < 0.12:
        text = _replaced(text, CONTRACTIONS, rng)
    if rng.random() < 0.02:
        text = _replaced(text, SHORTHAND, rng)
    roll = rng.random()
    if roll < 0.28:
        text = text.lower()
    elif roll < 0.36:
        text = _uncapitalised(text)
    elif roll < 0.37:
        text = text.upper()
    roll = rng.random()
    if roll < 0.28:
        text = text.rstrip("?.!")
    elif roll < 0.31:
        text = text.rstrip("?.!") + rng.choice((" ?", "??", "?!", " !", "..."))
    if rng.random() < 0.05:
        text = text.replace("'", "")
    if rng.random() < 0.10:
        text = misspelt(text, rng)
    return text.strip() or "?"
