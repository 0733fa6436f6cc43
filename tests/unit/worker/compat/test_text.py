"""Characters that an engine splits over its events come out whole, and each event is one line."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.worker.compat.text import TextJoiner, json_text

SAMPLE = "aé€😀💀z"


def joined(*pieces: str) -> list[str]:
    joiner = TextJoiner()
    return [*(joiner.feed(piece) for piece in pieces), joiner.rest()]


def byte_pieces(text: str, *cuts: int) -> list[str]:
    data = text.encode()
    edges = [0, *cuts, len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    return [part.decode("utf-8", "surrogateescape") for part in parts]


def test_bytes_cut_anywhere_make_whole_characters() -> None:
    for cut in range(len(SAMPLE.encode()) + 1):
        pieces = joined(*byte_pieces(SAMPLE, cut))
        assert "".join(pieces) == SAMPLE
        assert "\ufffd" not in pieces[0]
    single = byte_pieces(SAMPLE, *range(1, len(SAMPLE.encode())))
    assert "".join(joined(*single)) == SAMPLE
    assert len(single) == len(SAMPLE.encode())


@pytest.mark.parametrize("character", ["😀", "💀", "\U00010000", "\U0010ffff"])
def test_halves_of_utf16_make_whole_characters(character: str) -> None:
    # The second half of some of these lies where PEP 383 puts bytes that do not decode.
    halves = character.encode("utf-16-be").hex()
    high, low = chr(int(halves[:4], 16)), chr(int(halves[4:], 16))
    assert joined("a" + high, low + "b") == ["a", character + "b", ""]
    assert joined(high, "", low) == ["", "", character, ""]
    assert joined("a" + high + low) == ["a" + character, ""]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (("a\ud83d",), "a\ufffd"),
        (("\ud83d", "b"), "\ufffdb"),
        (("\ud83d", "\ud83d", "\ude00"), "\ufffd😀"),
        (("\ude00b",), "\ufffdb"),
        (("\udce2\udc82",), "\ufffd"),
        (("\udce2", "b"), "\ufffdb"),
        (("\udcffb",), "\ufffdb"),
    ],
)
def test_what_never_becomes_a_character_is_replaced(pieces: tuple[str, ...], expected: str) -> None:
    assert "".join(joined(*pieces)) == expected


@given(st.text(), st.data())
def test_any_text_survives_any_cuts(text: str, data: st.DataObject) -> None:
    size = len(text.encode())
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=8)))
    assert "".join(joined(*byte_pieces(text, *cuts))) == text


@given(st.lists(st.text(st.characters(codec=None, categories=["L", "Cs"]))))
def test_nothing_that_is_not_text_comes_out(pieces: list[str]) -> None:
    "".join(joined(*pieces)).encode()


@given(st.text())
def test_a_json_text_is_one_line_for_every_reader(text: str) -> None:
    encoded = json_text(text)
    assert json.loads(encoded) == text
    assert encoded.decode().splitlines() == [encoded.decode()]


def test_a_json_text_is_not_ascii() -> None:
    assert json_text('"😀"\u2028\x85') == b'"\\"\xf0\x9f\x98\x80\\"\\u2028\\u0085"'
