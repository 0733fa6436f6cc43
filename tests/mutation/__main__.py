"""``make mutate``: mutates all evidence there is, and fails where a mutant is affirmed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from mutation.job import Tally, Task, tasks, work
from mutation.simulated import simulated
from mutation.subjects import EVIDENCE, Subject, recorded

SUBJECTS: list[Subject] = []
"""Filled before processes are forked, which is how they come to know it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where there is a finding."""
    options = _options(arguments)
    SUBJECTS[:] = [
        subject
        for subject in (*recorded(), *simulated())
        if not options.only or any(name in subject.name for name in options.only)
    ]
    if not EVIDENCE.is_dir():
        print("No recorded evidence here: only simulated vendors' is mutated.")
    started = time.monotonic()
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    for key, tally in _run(options):
        subject, part, _ = key.split("|")
        tallies[subject, part].add(tally)
    elapsed = time.monotonic() - started
    _print(tallies, elapsed)
    if options.json is not None:
        options.json.write_text(json.dumps(_json(tallies, elapsed, options), indent=1) + "\n")
    return 1 if any(tally.findings for tally in tallies.values()) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutate", description=__doc__)
    parser.add_argument("only", nargs="*", help="subjects whose names contain one of these")
    parser.add_argument("--one-in", type=int, default=1, help="a sample: one mutant in so many")
    parser.add_argument("--turn", type=int, default=0, help="which sample, of several")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    parser.add_argument("--resume", type=Path, help="a file that keeps what is done, and is read")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> Iterator[tuple[str, Tally]]:
    """Results of all tasks, those kept in a file first."""
    done = dict(_kept(options.resume))
    chosen = list(tasks(SUBJECTS, options.one_in, options.turn))
    todo = [task for task in chosen if task.key(SUBJECTS) not in done]
    wanted = {task.key(SUBJECTS) for task in chosen}
    yield from ((key, tally) for key, tally in done.items() if key in wanted)
    judged, started, told = 0, time.monotonic(), 0.0
    with (
        multiprocessing.get_context("fork").Pool(options.processes) as pool,
        _journal(options.resume) as journal,
    ):
        for number, (key, tally) in enumerate(pool.imap_unordered(_work, todo), 1):
            journal.write(json.dumps([key, _as_json(tally)]) + "\n")
            journal.flush()
            judged += tally.total
            for example in tally.examples[:3]:
                print(example, flush=True)
            passed = time.monotonic() - started
            if passed - told > 15:
                told = passed
                print(
                    f"{number}/{len(todo)} runs, {judged} mutants, {judged / passed:.0f}/s",
                    flush=True,
                )
            yield key, tally


def _work(task: Task) -> tuple[str, Tally]:
    return task.key(SUBJECTS), work(SUBJECTS[task.subject], task.part, task.numbers)


def _journal(path: Path | None) -> TextIO:
    return Path(os.devnull if path is None else path).open("a", encoding="utf-8")


def _kept(path: Path | None) -> Iterator[tuple[str, Tally]]:
    if path is None or not path.exists():
        return
    for line in path.read_text().splitlines():
        key, members = json.loads(line)
        tally = Tally(
            examples=members["examples"], seconds=members["seconds"], slowest=members["slowest"]
        )
        tally.counts.update(members["counts"])
        yield key, tally


def _as_json(tally: Tally) -> dict[str, object]:
    return {
        "counts": dict(sorted(tally.counts.items())),
        "examples": tally.examples,
        "seconds": round(tally.seconds, 4),
        "slowest": round(tally.slowest, 4),
    }


def _json(
    tallies: dict[tuple[str, str], Tally], elapsed: float, options: argparse.Namespace
) -> dict[str, object]:
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    return {
        "one_in": options.one_in,
        "elapsed": round(elapsed, 1),
        "total": whole.total,
        "findings": whole.findings,
        "counts": dict(sorted(whole.counts.items())),
        "not_read": {subject.name: subject.not_read for subject in SUBJECTS if subject.not_read},
        "parts": [
            {"subject": subject, "part": part, **_as_json(tally)}
            for (subject, part), tally in sorted(tallies.items())
        ],
    }


def _print(tallies: dict[tuple[str, str], Tally], elapsed: float) -> None:
    whole, subjects = Tally(), defaultdict[str, Tally](Tally)
    for (subject, _), tally in sorted(tallies.items()):
        subjects[subject].add(tally)
        whole.add(tally)
    for name, tally in subjects.items():
        counts = ", ".join(f"{what} {count}" for what, count in sorted(tally.counts.items()))
        print(f"{name}: {tally.total}: {counts}")
    for example in whole.examples:
        print(example)
    print(
        f"{whole.total} mutants of {len(subjects)} pieces of evidence in {elapsed:.0f} s"
        f" ({whole.total / max(elapsed, 0.001):.0f}/s),"
        f" slowest {whole.slowest * 1000:.0f} ms CPU: {whole.findings} findings"
    )


if __name__ == "__main__":
    sys.exit(main())
