"""What 10,000 verifications leave behind in memory.

Resident memory of the process before and after every thousand, the collector having run, warm
verifications of the same evidence, beside as many of nothing at all. A report of a simulated worker
is another one each time, with a nonce and a signature of its own, so that what is remembered of
evidence would show, too. The median tells of steady growth; all of it together, steps included, is
among the remarks.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.context import Context
from benchmarks.harness import (
    Arm,
    Report,
    Rounds,
    Sample,
    Scale,
    at_most,
    difference,
    measure,
)
from benchmarks.simulated_subjects import subjects
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy as policies
from cloister.verifier.report import verify_report

VERIFICATIONS = 10_000
ROUNDS = 10
NOTHING = "nothing"
WORKER = "Report of a simulated SNP worker, another each time"

_STATM = Path("/proc/self/statm")
_KIB = Scale(unit="KiB", factor=1 / 1024)
# One page more or less per round is the kernel's doing.
_BOUND_KIB = 16.0


def resident_bytes() -> int:
    """Resident memory of this process, once what nobody holds is gone."""
    gc.collect()
    return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()


def growth(call: Callable[[], object], count: int) -> int:
    """By how many bytes resident memory grows while `call` is made `count` times."""
    before = resident_bytes()
    for _ in range(count):
        call()
    return resident_bytes() - before


def fresh_report() -> Callable[[], object]:
    """A call that has a simulated worker make a report, and verifies it."""
    now = datetime.now(UTC)
    worker = SimulatedHardware.make("snp", now=now)
    policy, values, roots = policies.development(), worker.reference_values, worker.roots

    def call() -> None:
        nonce = os.urandom(32)
        report = worker.report(nonce)
        verify_report(
            report, nonce=nonce, policy=policy, reference_values=values, roots=roots, at=now
        ).require_affirming()

    return call


def calls() -> dict[str, Callable[[], object]]:
    """What is repeated, by name."""
    return {**{one.name: one.warm for one in subjects()}, WORKER: fresh_report()}


def _grown(call: Callable[[], object], count: int) -> Callable[[], Sample]:
    return lambda: {"bytes": float(growth(call, count))}


def total_kib(rounds: Rounds, name: str) -> float:
    """How much was left behind over all rounds."""
    return sum(rounds.values(name, "bytes")) / 1024


def run(context: Context) -> Report:
    """Repeat every verification."""
    count = context.count(VERIFICATIONS // ROUNDS, 3)
    given = {**calls(), NOTHING: lambda: None}
    raw = measure(
        [Arm(name=name, run=_grown(call, count)) for name, call in given.items()],
        context.plan(ROUNDS, warmups=2),
    )
    totals = (f"{name}: {total_kib(raw, name):.0f} KiB" for name in given)
    return Report(
        title="Memory after 10,000 verifications",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=tuple(
            difference(
                f"{name}: growth per {count:,}",
                raw,
                name,
                NOTHING,
                "bytes",
                scale=_KIB,
                target=at_most(_BOUND_KIB),
            )
            for name in given
            if name != NOTHING
        ),
        remarks=(f"Over all {count * len(raw.rounds):,}: {'; '.join(totals)}.",),
        raw={"growth": raw},
    )
