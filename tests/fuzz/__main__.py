"""``make fuzz``: every parser for so many seconds, several at a time, and what came of it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fuzz.targets import TARGETS

_RUNS = re.compile(r"stat::number_of_executed_units: +(\d+)")
_MEMORY = re.compile(r"stat::peak_rss_mb: +(\d+)")
_COVERAGE = re.compile(r"cov: (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of one target."""

    name: str
    status: int
    runs: int
    coverage: int
    memory_mib: int
    said: str

    def __str__(self) -> str:
        found = "" if not self.status else f"  FOUND SOMETHING (status {self.status})"
        return (
            f"{self.name:24} {self.runs:>10} runs  {self.coverage:>6} edges"
            f"  {self.memory_mib:>5} MiB{found}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where anything was found."""
    options = _options(arguments)
    names = [
        name for name in TARGETS if not options.only or any(one in name for one in options.only)
    ]
    if find_spec("atheris") is None:
        print("atheris is not installed: fuzzing by hand, without guidance by coverage.")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="cloister-fuzz-"))
    with ThreadPoolExecutor(options.processes) as pool:
        results = list(pool.map(partial(_fuzz, seconds=options.seconds, folder=folder), names))
    bad = [done for done in results if done.status]
    for done in bad:
        print(f"--- {done.name}\n{done.said[-3000:]}")
    for done in results:
        print(done)
    print(
        f"{len(results)} parsers, {sum(done.runs for done in results)} runs,"
        f" {len(bad)} with findings; in {folder}"
    )
    return 1 if bad else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("only", nargs="*", help="parsers whose names contain one of these")
    parser.add_argument("--seconds", type=int, default=600, help="for each parser")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="keeps corpora and findings")
    return parser.parse_args(arguments)


def _fuzz(name: str, *, seconds: int, folder: Path) -> Done:
    ran = subprocess.run(
        [sys.executable, "-m", "fuzz.one", name, str(seconds), str(folder / name)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds + 300,
    )
    said = ran.stdout + ran.stderr
    return Done(
        name=name,
        status=ran.returncode,
        runs=_last(_RUNS, said),
        coverage=_last(_COVERAGE, said),
        memory_mib=_last(_MEMORY, said),
        said=said,
    )


def _last(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
