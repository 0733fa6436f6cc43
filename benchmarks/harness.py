"""Paired measurement: every round runs all arms, and only arms of one round are compared.

A machine drifts (clock frequency, caches, neighbours), so two numbers taken minutes apart say
little about each other. Arms alternate A B, B A, A B, …; the ratio or difference is taken within
each round, and what is reported is the median over the rounds, with its spread. A number never
appears without the arm it is to be compared with: `Figure` refuses to be made from one arm.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.statistics import Summary, summarise

Sample = Mapping[str, float]
Round = Mapping[str, Sample]
"""Arm name -> quantity name -> number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to run. `run` does one repetition and returns what it measured, by name."""

    name: str
    run: Callable[[], Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often to measure, and what to do between the repetitions.

    `settle` is called before each repetition: it waits for the machine to be quiet. `watch`
    wraps each repetition and says afterwards whether something else disturbed it; a round that
    was disturbed is run again, `retries` times over all rounds of one benchmark.
    """

    rounds: int = 10
    warmups: int = 1
    retries: int = 5
    settle: Callable[[], None] = lambda: None
    watch: Callable[[Callable[[], Sample]], tuple[Sample, bool]] = lambda run: (run(), False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError("a measurement has at least one round")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What all rounds gave. `disturbed` of them stayed disturbed after the retries ran out."""

    rounds: tuple[Round, ...]
    repeated: int = 0
    disturbed: int = 0

    def values(self, arm: str, quantity: str) -> list[float]:
        """One number per round."""
        return [one[arm][quantity] for one in self.rounds]

    def ratios(self, arm: str, to: str, quantity: str) -> list[float]:
        """`arm` over `to`, within each round."""
        return [one[arm][quantity] / one[to][quantity] for one in self.rounds]

    def differences(self, arm: str, to: str, quantity: str) -> list[float]:
        """`arm` minus `to`, within each round."""
        return [one[arm][quantity] - one[to][quantity] for one in self.rounds]


def orders(arms: Sequence[Arm]) -> Iterator[tuple[Arm, ...]]:
    """Yield the order of each round without end: forwards, backwards, forwards, …."""
    forwards, backwards = tuple(arms), tuple(reversed(arms))
    while True:
        yield forwards
        yield backwards


def measure(arms: Sequence[Arm], plan: Plan) -> Rounds:
    """Run all arms `plan.rounds` times, after warm-ups whose numbers are thrown away.

    Raises ValueError when the arms are fewer than two or share a name: nothing is measured
    that cannot be compared.
    """
    names = [arm.name for arm in arms]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("a measurement needs two arms or more, with different names")
    for _ in range(plan.warmups):
        for arm in arms:
            arm.run()
    done: list[Round] = []
    repeated = disturbed = 0
    order = orders(arms)
    for _ in range(plan.rounds):
        arms_now = next(order)
        current, troubled = _one_round(arms_now, plan)
        while troubled and repeated < plan.retries:
            repeated += 1
            current, troubled = _one_round(arms_now, plan)
        disturbed += troubled
        done.append(current)
    return Rounds(rounds=tuple(done), repeated=repeated, disturbed=disturbed)


def _one_round(arms: Sequence[Arm], plan: Plan) -> tuple[Round, bool]:
    samples: dict[str, Sample] = {}
    troubled = False
    for arm in arms:
        plan.settle()
        samples[arm.name], bad = plan.watch(arm.run)
        troubled = troubled or bad
    return samples, troubled


class Direction(enum.StrEnum):
    """Which side of its bound a target lies on."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a median is held to."""

    direction: Direction
    bound: float

    def met_by(self, value: float) -> bool:
        """Whether `value` is on the right side."""
        if self.direction is Direction.AT_LEAST:
            return value >= self.bound
        return value <= self.bound


def at_least(bound: float) -> Target:
    """Target: the median is `bound` or more."""
    return Target(direction=Direction.AT_LEAST, bound=bound)


def at_most(bound: float) -> Target:
    """Target: the median is `bound` or less."""
    return Target(direction=Direction.AT_MOST, bound=bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a table: a comparison, the arms it was made from, and its target.

    `arms` gives each arm's own median and the unit it has; `value` is the comparison within
    rounds, in `unit` (empty for a ratio).
    """

    name: str
    comparison: str
    unit: str
    value: Summary
    arms: Mapping[str, Summary]
    arm_unit: str
    target: Target | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        if len(self.arms) < 2:
            raise ValueError("a figure shows the arms that were compared: two or more")

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        return None if self.target is None else self.target.met_by(self.value.median)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The unit to show a quantity in, and what one of its own units is in it."""

    unit: str
    factor: float


SECONDS = Scale(unit="s", factor=1.0)
MILLISECONDS = Scale(unit="ms", factor=1e3)
MICROSECONDS = Scale(unit="µs", factor=1e6)
PLAIN = Scale(unit="", factor=1.0)


def _arms(rounds: Rounds, names: Sequence[str], quantity: str, scale: Scale) -> dict[str, Summary]:
    return {
        name: summarise([scale.factor * value for value in rounds.values(name, quantity)])
        for name in names
    }


def ratio(
    name: str,
    rounds: Rounds,
    arm: str,
    to: str,
    quantity: str,
    *,
    scale: Scale = PLAIN,
    target: Target | None = None,
    notes: str = "",
) -> Figure:
    """The figure "`arm` over `to`"; the arms themselves are shown in `scale`."""
    return Figure(
        name=name,
        comparison=f"{arm} / {to}",
        unit="",
        value=summarise(rounds.ratios(arm, to, quantity)),
        arms=_arms(rounds, (arm, to), quantity, scale),
        arm_unit=scale.unit,
        target=target,
        notes=notes,
    )


def difference(
    name: str,
    rounds: Rounds,
    arm: str,
    to: str,
    quantity: str,
    *,
    scale: Scale = PLAIN,
    target: Target | None = None,
    notes: str = "",
) -> Figure:
    """The figure "`arm` minus `to`", all of it in `scale`."""
    return Figure(
        name=name,
        comparison=f"{arm} − {to}",
        unit=scale.unit,
        value=summarise([scale.factor * one for one in rounds.differences(arm, to, quantity)]),
        arms=_arms(rounds, (arm, to), quantity, scale),
        arm_unit=scale.unit,
        target=target,
        notes=notes,
    )


def beside(
    name: str,
    rounds: Rounds,
    arm: str,
    to: str,
    quantity: str,
    *,
    scale: Scale = PLAIN,
    target: Target | None = None,
    notes: str = "",
) -> Figure:
    """The figure "`arm`, beside `to`": for targets that are set for `arm` itself."""
    arms = _arms(rounds, (arm, to), quantity, scale)
    return Figure(
        name=name,
        comparison=f"{arm}, beside {to}",
        unit=scale.unit,
        value=arms[arm],
        arms=arms,
        arm_unit=scale.unit,
        target=target,
        notes=notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one benchmark found."""

    title: str
    method: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """Parts that could not be measured, and why; the others are good all the same."""
    raw: Mapping[str, Rounds] = field(default_factory=dict)
