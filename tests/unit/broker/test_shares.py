from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.broker.shares import interpolate, invert, join, multiply, split

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors/shamir/shamir-mnemonic.json").read_text()
)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['threshold']} shares")
def test_another_implementations_shares_join(case: dict[str, object]) -> None:
    shares = case["shares"]
    further = case["further"]
    assert isinstance(shares, dict)
    assert isinstance(further, dict)
    found = {int(number): bytes.fromhex(value) for number, value in shares.items()}
    assert join(found).hex() == case["secret"]
    for at, expected in further.items():
        assert interpolate(found, int(at)).hex() == expected


def test_the_field_is_the_one_of_aes() -> None:
    """FIPS 197, sections 4.2 and 4.2.1: {57} by {83} is {c1}, {57} by {13} is {fe}."""
    assert multiply(0x57, 0x83) == 0xC1
    assert multiply(0x57, 0x13) == 0xFE
    assert multiply(0x02, 0x80) == 0x1B
    assert invert(0) == 0
    for element in range(1, 256):
        assert multiply(element, invert(element)) == 1
        assert multiply(element, 1) == element


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 2), (2, 3), (3, 5), (5, 5)])
def test_any_threshold_of_shares_join_and_fewer_do_not(threshold: int, count: int) -> None:
    secret = os.urandom(32)
    shares = split(secret, shares=count, threshold=threshold, random=os.urandom)
    assert list(shares) == list(range(1, count + 1))
    for size in range(threshold, count + 1):
        for chosen in combinations(shares, size):
            assert join({number: shares[number] for number in chosen}) == secret
    if threshold > 1:
        for chosen in combinations(shares, threshold - 1):
            assert join({number: shares[number] for number in chosen}) != secret


def test_fewer_shares_fit_every_secret_alike() -> None:
    """With one share of a threshold of two, each secret belongs to exactly one other share."""
    share = split(b"\x2a", shares=2, threshold=2, random=lambda size: b"\x99" * size)[1]
    secrets = {join({1: share, 2: bytes([other])}) for other in range(256)}
    assert secrets == {bytes([value]) for value in range(256)}


def test_shares_are_made_of_fresh_random_bytes() -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    split(bytes(32), shares=5, threshold=3, random=random)
    assert asked == [32, 32]


@settings(max_examples=30)
@given(st.binary(min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 4))
def test_any_secret_comes_back(secret: bytes, threshold: int, more: int) -> None:
    shares = split(secret, shares=threshold + more, threshold=threshold, random=os.urandom)
    kept = dict(list(shares.items())[-threshold:])
    assert join(kept) == secret


@pytest.mark.parametrize(("count", "threshold"), [(1, 2), (256, 2), (2, 0)])
def test_impossible_numbers_are_refused(count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(b"x", shares=count, threshold=threshold, random=os.urandom)


def test_what_are_no_shares_is_refused() -> None:
    for shares in ({}, {0: b"x", 1: b"y"}, {256: b"x"}, {1: b"x", 2: b"xy"}):
        with pytest.raises(ValueError, match="shares"):
            join(shares)
