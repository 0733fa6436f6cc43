"""``make soak``: many people for many minutes, with the demo model, then with a scripted engine."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cloister.worker.api_keys import ApiKeyFile
from soak.people import Copying, Echoing
from soak.run import Outcome, Plan, figures, judge, run, trust_of
from soak.watch import MIB
from support.program import SHORT_HOURS, new_home, program, until, upstream_policy

ENGINES: Final = ("llama", "scripted")
PARALLEL: Final = 8
COPIED: Final = 0.5
"""The demo model repeats more than four markers in five; with so few, something else is wrong."""


RATE: Final = 25.0
"""Pieces per second and stream of the scripted engine."""


def soak(engine: str, *, seconds: float, streams: int, growth: float) -> Outcome:
    """One soak of the program with `engine`; memory may grow by `growth` bytes."""
    llama = engine == "llama"
    plan = Plan(
        seconds=seconds,
        streams=streams,
        parallel=PARALLEL if llama else streams,
        growth=growth,
        own_share=COPIED if llama else 1.0,
    )
    home = new_home()
    table = ApiKeyFile(home / "keys.json")
    keys = (table.add("one", at=0)[1], table.add("other", at=0)[1])
    options = ["--api-keys", str(home / "keys.json"), "--rate-per-minute", "0"]
    if llama:
        options += ["--parallel", str(PARALLEL)]
        with program(*options, home=home, command=SHORT_HOURS) as running:
            trust, script = trust_of(running), Copying()
            return run(running, plan, script, trust=trust, keys=keys, engines=running.models)
    with scripted_engine(RATE) as (address, pid):
        options += ["--upstream", address, "--model-name", "fake"]
        with program(*options, home=home, command=SHORT_HOURS) as running:
            trust = trust_of(running, upstream_policy())
            return run(running, plan, Echoing(), trust=trust, keys=keys, engines=lambda: [pid])


@contextlib.contextmanager
def scripted_engine(rate: float) -> Iterator[tuple[str, int]]:
    """A fake engine that echoes, in a process of its own; its address and process."""
    home = new_home()
    path = home / "engine"
    command = [sys.executable, "-m", "cloister.testing.fake_engine", "--socket", str(path)]
    command += ["--echo", "--rate", str(rate), "--tokens", "40000"]
    with subprocess.Popen(command) as process:
        try:
            until(path.exists)
            yield f"unix:{path}", process.pid
        finally:
            process.kill()
            path.unlink(missing_ok=True)
            home.rmdir()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for each engine")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--growth", type=float, default=4.0, help="MiB that memory may grow by")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="by default both")
    parser.add_argument("--out", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    written, bad = "", 0
    for engine in options.engine or ENGINES:
        outcome = soak(
            engine,
            seconds=options.seconds,
            streams=options.streams,
            growth=options.growth * MIB,
        )
        found = judge(outcome)
        bad += len(found)
        text = f"{engine}:\n\n{figures(outcome)}"
        text += "".join(f"- NOT AS IT SHOULD BE: {one}\n" for one in found)
        print(text, flush=True)
        written += text + "\n"
    if options.out is not None:
        options.out.write_text(written, encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
