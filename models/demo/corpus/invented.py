"""Names, numbers and words that nobody has seen before."""

from __future__ import annotations

from random import Random

from corpus.phrasing import capitalised

# ruff: noqa: SIM905 - lists of many short words read best as text
_ONSETS = "b c d f g h j k l m n p r s t v w z br tr st ch gr pl th sh fl cr".split()
_VOWELS = "a e i o u ai ea oo ie".split()
_ENDINGS = ("", "", "n", "s", "l", "k", "r", "t", "x", "nd", "ng")
_HEX = "0123456789abcdef"
_SEPARATORS = ("-", "-", "_", "")

NAMES = (
    "Alice Bob Carol David Emma Frank Grace Henry Ines Jack Karim Lena Marco Nadia Oscar Paula "
    "Quentin Rosa Samir Tina Umar Vera Walter Xenia Yuki Zoe Anna Ben Clara Daniel Elena Felix "
    "Gita Hugo Ivan Julia Kevin Laura Maria Nina Omar Peter Rita Simon Thomas Ursula Victor Wendy "
    "Adam Mia Leo Noah Sara Tom Eva Max Ada Alan Linus Maya Priya Chen Wei Fatima Ali Sofia Luca "
    "Olga Pavel Hannah John James Robert Michael William Mary Linda Susan Theodora Charles George "
    "Sam Alex Chris Pat Kim Lee Mohammed Ahmed Aisha Olivia Amelia Lucas Liam Ethan Jan Piet"
).split()


def pseudo_word(rng: Random, syllables: tuple[int, ...] = (2, 2, 3)) -> str:
    """Return a pronounceable word that means nothing."""
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice(syllables)))
    return "".join(parts) + rng.choice(_ENDINGS)


def name(rng: Random) -> str:
    """Return a first name, often an invented one, so that copying is learned and not recall."""
    return rng.choice(NAMES) if rng.random() < 0.5 else capitalised(pseudo_word(rng))


def number(rng: Random) -> str:
    """Return a number of one to four digits."""
    return str(rng.randrange(10 ** rng.randrange(1, 5)))


def gibberish(rng: Random) -> str:
    """Return a run of random letters."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(3, 9)))


def marker(rng: Random) -> str:
    """Return a random marker such as canary-3fa9c2, in one of a few shapes."""
    digits = "".join(rng.choice(_HEX) for _ in range(rng.choice((4, 6, 8, 8, 12, 16))))
    if rng.random() < 0.3:
        digits = digits.upper()
    word = rng.choice(("canary", "marker", "test", "token", "", "", pseudo_word(rng)))
    return word + rng.choice(_SEPARATORS) + digits if word else digits
