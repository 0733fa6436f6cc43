"""Verifying leaves nothing behind."""

from __future__ import annotations

import pytest
from benchmarks import growth
from benchmarks.harness import Rounds
from benchmarks.simulated_subjects import subjects

CALLS = growth.calls()

# A hundred bytes for each verification, should they stay, make 1 MB.
MOST_BYTES = 1_000_000
# By then the allocator has what it needs: a megabyte, at most.
WARM_UP = 2_000


def test_everything_that_is_measured_is_repeated() -> None:
    assert {*CALLS} == {*(one.name for one in subjects()), growth.WORKER}


def test_what_stays_is_seen() -> None:
    kept: list[bytes] = []
    # Pieces too large for what the allocator has at hand from other tests.
    assert growth.growth(lambda: kept.append(bytes(range(256)) * 2**18), 4) > 128 * 2**20
    assert len(kept) == 4


def test_growth_is_added_up() -> None:
    rounds = Rounds(rounds=({"x": {"bytes": 1024.0}}, {"x": {"bytes": 3072.0}}))
    assert growth.total_kib(rounds, "x") == 4.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CALLS)
def test_ten_thousand_verifications_leave_nothing_behind(name: str) -> None:
    growth.growth(CALLS[name], WARM_UP)
    assert growth.growth(CALLS[name], growth.VERIFICATIONS) < MOST_BYTES
