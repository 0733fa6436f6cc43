"""Writes ``docs/reference/mutation.md``: ``python -m mutation.page COUNTS.json > PAGE``.

`COUNTS.json` is what ``make mutate MUTATE=--json=COUNTS.json`` wrote.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mutation.job import FINDINGS, REFUSED, SAME, UNDECIDED, UNSIGNED
from mutation.unsigned import TABLE

INTRODUCTION: Final = Path(__file__).with_name("page.md")


def page(results: dict[str, Any]) -> Iterator[str]:
    """The page's lines."""
    yield INTRODUCTION.read_text().rstrip("\n")
    yield "\n## Parts that nobody signs\n"
    yield "| Name | Why a change there is no forgery | Mutants |"
    yield "| --- | --- | ---: |"
    for entry in TABLE:
        count = results["counts"].get(UNSIGNED + entry.name, 0)
        yield f"| `{entry.name}` | {entry.reason} | {count} |"
    yield "\n## Results\n"
    yield _summary(results)
    yield "\n| Evidence | Mutants | Refused | Undecided | Same value | Unsigned | Findings |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, counts in sorted(_by_subject(results).items()):
        yield _row(name, counts)
    yield _row("**all**", Counter(results["counts"]))


def _summary(results: dict[str, Any]) -> str:
    part = "All mutants" if results["one_in"] == 1 else f"One mutant in {results['one_in']}"
    seconds = sum(entry["seconds"] for entry in results["parts"])
    slowest = max(entry["slowest"] for entry in results["parts"])
    return (
        f"{part} of the evidence: {results['total']} judged,"
        f" {1000 * seconds / max(1, results['total']):.1f} ms of processor time each,"
        f" {1000 * slowest:.0f} ms the slowest; {results['findings']} findings."
    )


def _by_subject(results: dict[str, Any]) -> dict[str, Counter[str]]:
    subjects: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in results["parts"]:
        subjects[entry["subject"]].update(entry["counts"])
    return subjects


def _row(name: str, counts: Counter[str]) -> str:
    unsigned = sum(count for what, count in counts.items() if what.startswith(UNSIGNED))
    findings = sum(counts[what] for what in FINDINGS)
    cells = (sum(counts.values()), counts[REFUSED], counts[UNDECIDED], counts[SAME])
    return f"| {name} | " + " | ".join(map(str, (*cells, unsigned, findings))) + " |"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in page(json.loads(Path(sys.argv[1]).read_text())))
