"""Judges mutants, counts what became of them, and names those that nothing excuses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloister.verifier.result import Finding
from mutation.mutants import chunks
from mutation.spelling import same_value
from mutation.subjects import Part, Subject, affirmed
from mutation.unsigned import Affirmed, excuse

REFUSED: Final = "refused"
UNDECIDED: Final = "undecided"
SAME: Final = "same_value"
UNSIGNED: Final = "unsigned:"
FORGED: Final = "FORGED"
RAISED: Final = "RAISED"
FINDINGS: Final = (FORGED, RAISED)

CHUNK: Final = 400
MAX_EXAMPLES: Final = 40
"""Findings of a chunk that are told one by one; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Some mutants of one part."""

    subject: int
    part: str
    numbers: range

    def key(self, subjects: Sequence[Subject]) -> str:
        """Names the task in files, whatever the order of subjects."""
        numbers = self.numbers
        name = subjects[self.subject].name
        return f"{name}|{self.part}|{numbers.start}:{numbers.stop}:{numbers.step}"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of mutants."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def total(self) -> int:
        """How many were judged."""
        return sum(self.counts.values())

    @property
    def findings(self) -> int:
        """How many were affirmed, or raised, without an excuse."""
        return sum(self.counts[name] for name in FINDINGS)

    def add(self, other: Tally) -> None:
        """Add another's counts."""
        self.counts.update(other.counts)
        self.examples += other.examples
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)


def tasks(subjects: Sequence[Subject], one_in: int, turn: int = 0) -> Iterator[Task]:
    """Every task of a sample of one mutant in `one_in`."""
    for number, subject in enumerate(subjects):
        for part in subject.parts:
            for run in chunks(part.plan.sample(one_in, turn), CHUNK):
                yield Task(subject=number, part=part.name, numbers=run)


def work(subject: Subject, name: str, numbers: Sequence[int]) -> Tally:
    """Judge the mutants with these numbers."""
    tally, part = Tally(), subject.part(name)
    for number in numbers:
        mutant = part.plan[number]
        if mutant.data == part.plan.data:
            continue
        before = time.process_time()
        became, why = judge(subject, part, number)
        spent = time.process_time() - before
        tally.seconds += spent
        tally.slowest = max(tally.slowest, spent)
        tally.counts[became] += 1
        if became in FINDINGS and len(tally.examples) < MAX_EXAMPLES:
            tally.examples.append(f"{became} {subject.name} {name} #{number} {mutant} {why}")
    return tally


def judge(subject: Subject, part: Part, number: int) -> tuple[str, str]:
    """What becomes of one mutant, and for a finding, something about it."""
    mutant = part.plan[number]
    try:
        result = subject.judge(part.name, mutant.data)
    except Exception as error:  # whatever it is, it is a finding
        return RAISED, repr(error)[:200]
    if result.verdict is Finding.NONE:
        return UNDECIDED, ""
    if not affirmed(result):
        return REFUSED, ""
    if same_value(part.plan.data, mutant.data, encoding=part.encoding):
        return SAME, ""
    excused = excuse(
        Affirmed(
            subject=subject.name,
            part=part.name,
            encoding=part.encoding,
            original=part.plan.data,
            changed=mutant.data,
            roots=subject.roots,
            result=result,
        )
    )
    return (FORGED, "") if excused is None else (UNSIGNED + excused, "")
