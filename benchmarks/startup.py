"""From `cloister serve` to ready, with the demo model.

That is the whole launch: hashing the interpreter, every installed package and the model, starting
the software TPM, extending the measurements, certifying the attestation key, starting the worker
and its sandboxed engine, and announcing the address. What installation prepares (`cloister serve
--prepare`) is there before. Beside it stands the same
engine in the same sandbox, alone, started by a Python process that does nothing else. Nothing is
downloaded or compiled in between; files are in the page cache for both.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.children import ChildError, child
from benchmarks.context import Context
from benchmarks.harness import (
    SECONDS,
    Arm,
    Figure,
    Report,
    Rounds,
    Sample,
    at_most,
    beside,
    measure,
)
from cloister.engine.demo_model import demo_model_path

_PROGRAM = Path(sys.executable).parent / "cloister"
_TIMEOUT = 60.0
_WORKER, _ENGINE = "worker", "engine alone"
_READY = b"Serving "


def _prepare(state: Path) -> None:
    """Do what installation does, with a state of our own."""
    shutil.rmtree(state, ignore_errors=True)
    command = [str(_PROGRAM), "serve", "--prepare", "--state", str(state)]
    subprocess.run(command, check=True, capture_output=True)


def _serve(state: Path, runtime: Path) -> float:
    """Start a worker, wait until it announces itself, end it; return seconds until ready."""
    command = [str(_PROGRAM), "serve", "--port", "0", "--state", str(state)]
    command += ["--operator-socket", str(runtime / "operator.sock")]
    command += ["--kit", str(runtime / "kit")]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        return _until_ready(process) - began
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_TIMEOUT)
        if process.poll() is None:
            process.kill()
            process.communicate()


def _until_ready(process: subprocess.Popen[bytes]) -> float:
    if process.stderr is None:
        raise RuntimeError("the worker is started with a pipe")
    said = []
    for line in process.stderr:
        if line.startswith(_READY):
            return time.perf_counter()
        said.append(line.decode("utf-8", "replace"))
    raise ChildError(f"the worker did not get ready: {''.join(said)[-2000:]}")


def _engine_alone() -> float:
    began = time.perf_counter()
    with child("benchmarks.engine_alone", {"model": str(demo_model_path())}):
        return time.perf_counter() - began


def _measure(context: Context, runtime: Path, *, fresh: bool, rounds: int) -> Rounds:
    state = runtime / "state"

    def worker() -> Sample:
        if fresh:
            _prepare(state)
        return {"seconds": _serve(state, runtime)}

    arms = [
        Arm(name=_WORKER, run=worker),
        Arm(name=_ENGINE, run=lambda: {"seconds": _engine_alone()}),
    ]
    return measure(arms, context.plan(rounds))


def run(context: Context) -> Report:
    """Measure the first start after installation, and later ones."""
    raw: dict[str, Rounds] = {}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        runtime = Path(directory)
        for what, fresh in (
            ("The first start after installation", True),
            ("A start with the state of an earlier one", False),
        ):
            raw[what] = _measure(context, runtime, fresh=fresh, rounds=10)
            figures.append(
                beside(
                    what,
                    raw[what],
                    _WORKER,
                    _ENGINE,
                    "seconds",
                    scale=SECONDS,
                    target=at_most(3.0),
                )
            )
    return Report(
        title="Starting a worker",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=tuple(figures),
        raw=raw,
    )
