"""Run the benchmarks: ``python -m benchmarks [NAME…] [--quick] [--write-docs]``.

Each benchmark runs in a process of its own, so that none inherits another's memory, threads or
imports, and one that fails or hangs neither stops nor disturbs the others.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks import results
from benchmarks.context import Benchmark, Context
from benchmarks.machine import Quiet, environment

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).resolve().parent / "out"
PAGE = ROOT / "docs" / "benchmarks.md"

# In the order of the page. Each module has `run(context) -> Report`. The time in seconds is a
# limit for a run gone wrong; a normal one takes less than a third of it.
BENCHMARKS = {
    "sealed_vs_plain": 3600,
    "ehbp_peer": 900,
    "neighbours": 1800,
    "recycling": 900,
    "verification": 600,
    "manifest": 300,
    "reports": 400,
    "broker": 400,
    "growth": 1200,
    "imports": 400,
    "verifier_imports": 400,
    "startup": 900,
    "floor": 400,
    "weights": 600,
}
# How long one benchmark may wait, all told, for other work on the machine to pause.
PATIENCE = 120.0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--write-docs", action="store_true", help="fill in docs/benchmarks.md")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    arguments.names = arguments.names or list(BENCHMARKS)
    if arguments.quick and arguments.write_docs:
        parser.error("a quick run has no numbers worth writing down")
    return arguments


def _run_here(name: str, arguments: argparse.Namespace) -> bool:
    """Run one benchmark in this process and store its report; say whether it is complete."""
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").run
    wait = not (arguments.quick or arguments.no_wait)
    quiet = Quiet(patience=PATIENCE) if wait else None
    around = environment()
    started = time.monotonic()
    report = benchmark(Context(quick=arguments.quick, quiet=quiet))
    if quiet is not None:
        around["waited_s"] = round(quiet.waited, 1)
        around["worst_foreign_cpu"] = round(quiet.worst, 3)
    around["disturbed_rounds"] = sum(one.disturbed for one in report.raw.values())
    results.write(
        arguments.out / f"{name}.json",
        name=name,
        report=report,
        environment=around,
        seconds=time.monotonic() - started,
        quick=arguments.quick,
    )
    for failure in report.failures:
        print(f"{name}: {failure}", file=sys.stderr)
    return not report.failures


def _run_apart(name: str, arguments: argparse.Namespace) -> bool:
    """Run one benchmark in its own process group; say whether it succeeded."""
    (arguments.out / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks", name, "--child", "--out", str(arguments.out)]
    command += ["--quick"] if arguments.quick else []
    command += ["--no-wait"] if arguments.no_wait else []
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as child:
        try:
            return child.wait(BENCHMARKS[name]) == 0
        except subprocess.TimeoutExpired:
            print(f"{name}: ended after {BENCHMARKS[name]} s", file=sys.stderr)
            return False
        finally:
            # Also what a crashed benchmark left behind; the group is empty after a good one.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; return 1 when a benchmark could not be run to its end."""
    arguments = _arguments(argv)
    if arguments.child:
        try:
            return 0 if _run_here(arguments.names[0], arguments) else 1
        except Exception:
            traceback.print_exc()
            return 1
    arguments.out = arguments.out.resolve()
    failed = []
    for name in arguments.names:
        print(f"== {name}", file=sys.stderr, flush=True)
        if not _run_apart(name, arguments):
            failed.append(name)
        stored = arguments.out / f"{name}.json"
        if stored.exists():
            print(results.table(results.read(stored)), flush=True)
    if arguments.write_docs:
        _write_docs(arguments)
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _write_docs(arguments: argparse.Namespace) -> None:
    """Fill the page from every full result at hand, each with the time it was measured.

    What the page tells of a benchmark whose result is not at hand stays as it is.
    """
    paths = [arguments.out / f"{name}.json" for name in BENCHMARKS]
    outcomes = [results.read(path) for path in paths if path.exists()]
    page = arguments.page.read_text(encoding="utf-8")
    kept = [one for one in results.sections(page) if one.name in BENCHMARKS]
    rendered = results.document([one for one in outcomes if not one.quick], kept=kept)
    arguments.page.write_text(results.fill(page, rendered), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
