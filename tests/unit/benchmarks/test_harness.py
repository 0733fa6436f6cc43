"""Arms alternate, are compared within rounds, and never stand alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from benchmarks.harness import (
    MILLISECONDS,
    Arm,
    Figure,
    Plan,
    Rounds,
    Sample,
    at_least,
    at_most,
    beside,
    difference,
    measure,
    ratio,
)
from benchmarks.statistics import summarise


def scripted(name: str, calls: list[str], value: float = 1.0) -> Arm:
    def run() -> Sample:
        calls.append(name)
        return {"seconds": value}

    return Arm(name=name, run=run)


def rounds_of(*pairs: tuple[float, float]) -> Rounds:
    return Rounds(rounds=tuple({"a": {"seconds": a}, "b": {"seconds": b}} for a, b in pairs))


def test_arms_alternate_and_every_other_round_is_swapped() -> None:
    calls: list[str] = []
    measure([scripted("a", calls), scripted("b", calls)], Plan(rounds=4, warmups=1))
    assert calls == ["a", "b", *"abbaabba"]


def test_warm_ups_are_thrown_away() -> None:
    values = iter([100.0, 1.0, 2.0])
    arms = [
        Arm(name="a", run=lambda: {"seconds": next(values)}),
        scripted("b", []),
    ]
    found = measure(arms, Plan(rounds=2, warmups=1))
    assert found.values("a", "seconds") == [1.0, 2.0]


def test_a_disturbed_round_is_run_again_until_the_retries_are_spent() -> None:
    calls: list[str] = []
    verdicts = iter([True, False, False, False, *[True] * 20])

    def watch(run: Callable[[], Sample]) -> tuple[Sample, bool]:
        return run(), next(verdicts)

    plan = Plan(rounds=3, warmups=0, retries=3, watch=watch)
    found = measure([scripted("a", calls), scripted("b", calls)], plan)
    assert (found.repeated, found.disturbed) == (3, 2)
    assert len(found.rounds) == 3


def test_before_each_repetition_the_machine_may_settle() -> None:
    settled: list[str] = []
    calls: list[str] = []
    plan = Plan(rounds=1, warmups=0, settle=lambda: settled.append("now"))
    measure([scripted("a", calls), scripted("b", calls)], plan)
    assert len(settled) == 2


def test_one_arm_alone_is_not_measured() -> None:
    with pytest.raises(ValueError, match="two arms"):
        measure([scripted("a", [])], Plan())
    with pytest.raises(ValueError, match="two arms"):
        measure([scripted("a", []), scripted("a", [])], Plan())


def test_a_figure_shows_two_arms_at_least() -> None:
    value = summarise([1.0])
    with pytest.raises(ValueError, match="two or more"):
        Figure(name="x", comparison="", unit="", value=value, arms={"a": value}, arm_unit="")


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was ten times slower in the second round; the ratio does not notice.
    found = ratio("x", rounds_of((2.0, 1.0), (20.0, 10.0), (2.0, 1.0)), "a", "b", "seconds")
    assert found.value.median == found.value.maximum == 2.0
    assert found.arms["a"].median == 2.0


def test_differences_are_taken_within_rounds_and_shown_in_their_unit() -> None:
    rounds = rounds_of((0.003, 0.001), (0.011, 0.01), (0.005, 0.002))
    found = difference("x", rounds, "a", "b", "seconds", scale=MILLISECONDS)
    assert (found.unit, found.arm_unit) == ("ms", "ms")
    assert found.value.median == pytest.approx(2.0)


def test_an_arm_held_to_a_target_stands_beside_another() -> None:
    found = beside("x", rounds_of((3.0, 1.0)), "a", "b", "seconds", target=at_most(3.0))
    assert found.value.median == 3.0
    assert set(found.arms) == {"a", "b"}
    assert found.met is True


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (at_least(0.97), 0.97, True),
        (at_least(0.97), 0.9699, False),
        (at_most(2.0), 2.0, True),
        (at_most(2.0), 2.01, False),
    ],
)
def test_targets_include_their_bound(target: object, value: float, met: bool) -> None:
    assert target.met_by(value) is met  # type: ignore[attr-defined]
    assert ratio("x", rounds_of((1, 1)), "a", "b", "seconds").met is None


def test_a_plan_has_a_round() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        Plan(rounds=0)
