"""The arithmetic of perplexity, against hand-made distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cloister.engine.perplexity import ratio, scored, summarise, surprises, windows_of
from cloister.errors import ConfigurationError


class Model:
    """Foretells by one fixed row of logits for each token; remembers what it is fed."""

    def __init__(self, rows: Any, beginning: int | None = None) -> None:
        self.rows = np.asarray(rows, dtype=np.float32)
        self.beginning = beginning
        self.fed: list[list[int]] = []
        self.forgot = 0

    def forget(self) -> None:
        self.forgot += 1

    def feed(self, tokens: list[int], start: int, *, scored_from: int) -> None:
        assert (start, scored_from) == (0, len(tokens) // 2)
        self.fed.append(tokens)

    def logits(self, count: int) -> Any:
        return self.rows[self.fed[-1][-count:]]


def found(model: Model, windows: Sequence[Sequence[int]]) -> list[float]:
    return surprises(model, windows)  # type: ignore[arg-type]  # it has what is used


def test_a_model_that_knows_nothing_is_as_perplexed_as_it_has_tokens() -> None:
    model = Model(np.zeros((7, 7)))
    result = summarise(found(model, [[1, 2, 3, 4, 5, 6, 0, 1]] * 3))
    assert result.tokens == 3 * scored(8) == 9
    assert result.value == pytest.approx(7)
    assert result.error == pytest.approx(0, abs=1e-9)
    assert model.forgot == 3


def test_each_token_is_scored_by_what_came_before_it() -> None:
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]])
    window = [0, 1, 2, 1, 0, 2]  # the second half is 1, 0, 2; the first of it is not scored
    got = found(Model(np.log(chances) + 5), [window])
    assert got == pytest.approx([-math.log(0.1), -math.log(0.1)], rel=1e-5)


def test_the_beginning_takes_the_first_place() -> None:
    model = Model(np.zeros((9, 9)), beginning=8)
    found(model, [[1, 2, 3, 4]])
    assert model.fed == [[8, 2, 3, 4]]


def test_large_logits_do_not_overflow() -> None:
    got = found(Model([[0, 1e4], [0, 1e4]]), [[0, 0, 1, 1]])
    assert got == [0.0]
    assert found(Model([[1e4, 0], [1e4, 0]]), [[0, 0, 1, 1]]) == [1e4]


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    result = summarise(values)
    assert result.value == pytest.approx(math.exp(np.mean(values)))
    assert result.error == pytest.approx(result.value * np.std(values, ddof=1) / math.sqrt(5))
    with pytest.raises(ValueError, match="two values"):
        summarise([1.0])


def test_a_ratio_is_taken_token_by_token() -> None:
    base = [1.0, 5.0, 0.1, 9.0]
    assert ratio(base, base) == (1.0, 0.0)
    value, error = ratio([one + 0.25 for one in base], base)
    assert value == pytest.approx(math.exp(0.25))
    assert error == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="zip"):
        ratio(base, base[:-1])


def test_windows_are_whole() -> None:
    assert windows_of(range(11), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows_of(range(11), 4, 1) == [[0, 1, 2, 3]]
    for tokens, size in ((range(3), 4), (range(99), 3)):
        with pytest.raises(ConfigurationError):
            windows_of(tokens, size)
