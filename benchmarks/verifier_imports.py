"""What importing the verifier costs: CPU seconds of new processes, by module.

Each is a process of its own with compiled bytecode in place, the interpreter's start included.
Beside every module stand the interpreter alone and `import cryptography.x509`, without which no
certificate is read. CPU time (user and system) is what the kernel charged to the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace

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

TARGET_S = 0.25

NOTHING = "python"
NEEDED = "cryptography.x509"

_VERIFIER = "cloister.verifier."
MODULES = (
    f"{_VERIFIER}evidence",
    f"{_VERIFIER}report",
    *(
        f"{_VERIFIER}platforms.{name}"
        for name in ("snp", "tdx", "sgx", "nitro", "tpm", "azure", "gcp", "nvgpu", "dstack")
    ),
)


def cpu_of_process(code: str) -> float:
    """CPU seconds, user and system, of a new interpreter that runs `code`.

    Raises RuntimeError: it failed.
    """
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{code!r} failed")
    return used.ru_utime + used.ru_stime


def _importer(code: str) -> Callable[[], Sample]:
    return lambda: {"cpu": cpu_of_process(code)}


def _figure(module: str, rounds: Rounds) -> Figure:
    figure = beside(
        f"`import {module}`: CPU",
        rounds,
        module,
        NEEDED,
        "cpu",
        scale=SECONDS,
        target=at_most(TARGET_S),
    )
    alone = beside("", rounds, NOTHING, NEEDED, "cpu", scale=SECONDS)
    return replace(figure, arms={**figure.arms, **alone.arms})


def run(context: Context) -> Report:
    """Measure all of them together, so that each stands beside the same two."""
    raw = measure(
        [
            Arm(name=NOTHING, run=_importer("pass")),
            *(Arm(name=module, run=_importer(f"import {module}")) for module in (NEEDED, *MODULES)),
        ],
        context.plan(12),
    )
    return Report(
        title="Importing the verifier",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=tuple(_figure(module, raw) for module in MODULES),
        raw={"imports": raw},
    )
