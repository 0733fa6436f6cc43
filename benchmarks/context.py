"""What every benchmark is given: how thorough to be, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import Plan, Report
from benchmarks.machine import Quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`quick` asks for a smoke run: everything runs, nothing is worth reporting."""

    quick: bool
    quiet: Quiet | None
    """None means: do not look whether the machine is quiet."""

    def plan(self, rounds: int = 10, *, warmups: int = 1) -> Plan:
        """Return the plan of a comparison that normally takes `rounds` rounds."""
        if self.quick:
            return Plan(rounds=1, warmups=0)
        if self.quiet is None:
            return Plan(rounds=rounds, warmups=warmups)
        return Plan(
            rounds=rounds, warmups=warmups, settle=self.quiet.settle, watch=self.quiet.watch
        )

    def count(self, normal: int, quick: int) -> int:
        """Return how many repetitions, requests or bytes to use."""
        return quick if self.quick else normal


Benchmark = Callable[[Context], Report]
