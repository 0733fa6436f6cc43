"""What a soak calls a leak, a mix-up or growth; and a short one of each kind.

The long one is ``make soak``; the sample with real people is ``make soak-sample``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from soak.__main__ import ENGINES, soak
from soak.people import Tally
from soak.run import Outcome, Plan, figures, judge
from soak.watch import MIB, Census, Sample, trend
from support.software_tpm import HAVE_SWTPM

SAMPLE_S = 12.0
SAMPLE_STREAMS = 10
SAMPLE_GROWTH = 24 * MIB
"""In so short a time nothing is full yet; this only finds what grows without measure."""


def held(**changed: int) -> Census:
    census = Census(
        processes=5,
        worker_fds=24,
        worker_tasks=9,
        worker_threads=4,
        engines=1,
        engine_threads=130,
        engine_fds=9,
    )
    return replace(census, **changed)


def tally() -> Tally:
    counts: Counter[str] = Counter()
    counts.update(
        {
            "read whole": 90,
            "came anew": 5,
            "left in the middle": 9,
            "stalled and was cut off": 3,
            "cut an upload": 4,
            "sent rubbish": 8,
            "said nothing": 1,
        }
    )
    return Tally(counts=counts, answers=95, own=90, pieces=900)


def outcome(**changed: object) -> Outcome:
    samples = tuple(
        Sample(at=float(second), worker=60_000_000 + second % 3, engine=80_000_000)
        for second in range(60)
    )
    made = Outcome(
        plan=Plan(seconds=60, streams=8, parallel=8, growth=MIB, own_share=0.75),
        tally=tally(),
        before=held(),
        after=held(),
        samples=samples,
        counters={
            "cloister_open_requests": 0.0,
            "cloister_generations": 0.0,
            "cloister_cancelled_total": 12.0,
        },
        engine_idle=True,
        slots=8,
        seconds=60.0,
    )
    return replace(made, **changed)  # type: ignore[arg-type]  # fields by name


def test_a_good_soak_is_good() -> None:
    assert judge(outcome()) == []
    assert "24 → 24" in figures(outcome())


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("worker_fds", "worker_fds"),
        ("worker_tasks", "worker_tasks"),
        ("processes", "processes"),
        ("engines", "engines"),
        ("engine_threads", "engine_threads"),
        ("engine_fds", "engine_fds"),
    ],
)
def test_one_more_of_anything_is_a_leak(name: str, word: str) -> None:
    more = replace(held(), **{name: getattr(held(), name) + 1})
    (found,) = judge(outcome(after=more))
    assert word in found


def mixed(change: Callable[[Tally], None]) -> Outcome:
    made = tally()
    change(made)
    return outcome(tally=made)


def foreign(made: Tally) -> None:
    made.issued = {"11111111", "98765432"}
    made.read("11111111", "the code is 98765432", whole=True)


def near(made: Tally) -> None:
    made.issued = {"11111111", "11111199"}
    made.read("11111111", "the code is 11111199", whole=True)


def test_another_ones_marker_is_found_and_a_mistake_is_not_taken_for_it() -> None:
    (found,) = judge(mixed(foreign))
    assert "somebody else" in found
    assert judge(mixed(near)) == []


def test_what_else_must_not_be() -> None:
    def few(made: Tally) -> None:
        made.own = 50

    def wrong(made: Tally) -> None:
        made.problem("HTTP 500")

    def lazy(made: Tally) -> None:
        del made.counts["stalled and was cut off"]

    counters = outcome().counters
    bad = (
        outcome(engine_idle=False),
        outcome(slots=7),
        outcome(counters={**counters, "cloister_open_requests": 1.0}),
        outcome(counters={**counters, "cloister_generations": 1.0}),
        outcome(counters={**counters, "cloister_cancelled_total": 0.0}),
        mixed(few),
        mixed(wrong),
        mixed(lazy),
    )
    assert [len(judge(one)) for one in bad] == [1] * len(bad)


def test_growth_is_seen_through_noise_and_noise_is_not_growth() -> None:
    chosen = random.Random(1)

    def series(slope: float) -> list[tuple[float, float]]:
        noisy = [(t, 6e7 + slope * t + chosen.gauss(0, 3e5)) for t in map(float, range(300))]
        # Now and then memory is held for a moment, and given back.
        return [
            (t, value + (2e7 if index % 9 == 0 else 0)) for index, (t, value) in enumerate(noisy)
        ]

    assert abs(trend(series(0.0), warm_up=0.3).growth) < MIB / 4
    grown = trend(series(20_000.0), warm_up=0.3)
    assert grown.growth == pytest.approx(20_000 * grown.seconds, rel=0.2)
    assert grown.per_hour == pytest.approx(20_000 * 3600, rel=0.2)
    warm_up_only = [(t, 6e7 + 1e5 * min(t, 80)) for t in map(float, range(300))]
    assert trend(warm_up_only, warm_up=0.3).growth == 0
    with pytest.raises(ValueError, match="three points"):
        trend([(0.0, 1.0), (1.0, 1.0)], warm_up=0.0)


def test_a_growing_process_is_found() -> None:
    leaking = tuple(
        replace(one, worker=one.worker + int(one.at * MIB / 10)) for one in outcome().samples
    )
    (found,) = judge(outcome(samples=leaking))
    assert found.startswith("worker: memory grows")


@pytest.mark.slow
@pytest.mark.tpm
@pytest.mark.sandbox
@pytest.mark.timeout(400)
@pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed")
def test_a_sample_with_real_people() -> None:
    def one(engine: str) -> Outcome:
        return soak(engine, seconds=SAMPLE_S, streams=SAMPLE_STREAMS, growth=SAMPLE_GROWTH)

    with ThreadPoolExecutor() as pool:  # most of it is waiting for what stalls
        outcomes = list(pool.map(one, ENGINES))
    for outcome_ in outcomes:
        assert judge(outcome_) == [], figures(outcome_)
        assert outcome_.tally.answers >= SAMPLE_STREAMS
