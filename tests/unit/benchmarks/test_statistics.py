"""What is said about numbers is right, and always the same for the same numbers."""

from __future__ import annotations

import math
import random
import statistics as reference
from itertools import pairwise

import pytest
from benchmarks.statistics import Summary, bootstrap_median, median, quantile, summarise
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40)


@given(NUMBERS)
def test_the_median_is_the_median(values: list[float]) -> None:
    assert math.isclose(median(values), reference.median(values), rel_tol=1e-9, abs_tol=1e-6)


@given(NUMBERS)
def test_a_summary_is_in_order(values: list[float]) -> None:
    found = summarise(values)
    slack = 1e-6
    ordered = [found.minimum, found.q1, found.median, found.q3, found.maximum]
    assert all(low <= high + slack for low, high in pairwise(ordered))
    assert found.minimum - slack <= found.ci_low <= found.ci_high <= found.maximum + slack
    assert found.count == len(values)


def test_quantiles_are_interpolated() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.0) == 1.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.25) == 1.75
    assert quantile([1.0, 2.0, 3.0, 4.0], 1.0) == 4.0
    assert quantile([7.0], 0.99) == 7.0


def test_the_bootstrap_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    covered = 0
    for trial in range(100):
        low, high = bootstrap_median([rng.gauss(5, 1) for _ in range(15)], seed=trial)
        covered += low <= 5 <= high
    assert 85 <= covered <= 100


def test_the_bootstrap_interval_narrows_with_more_rounds() -> None:
    rng = random.Random(8)
    values = [rng.gauss(0, 1) for _ in range(200)]
    few, many = bootstrap_median(values[:10]), bootstrap_median(values)
    assert many[1] - many[0] < few[1] - few[0]


def test_the_same_numbers_give_the_same_summary() -> None:
    values = [3.0, 1.0, 2.0, 9.0]
    assert summarise(values) == summarise(values)
    assert Summary.parse(summarise(values).encode()) == summarise(values)


def test_nothing_measured_is_no_summary() -> None:
    with pytest.raises(ValueError, match="nothing"):
        summarise([])
