"""What importing the asking side costs: seconds and memory, in new processes.

`cloister.client` stands beside the packages that it cannot do without (httpx2 and cryptography),
and `cloister.OpenAI` beside the SDK whose clients it returns. Every repetition is a process of its
own, with compiled bytecode in place. Memory is the peak resident size of the whole process, the
interpreter included.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.context import Context
from benchmarks.harness import (
    SECONDS,
    Arm,
    Report,
    Sample,
    Scale,
    at_most,
    beside,
    difference,
    measure,
)

_MEGABYTES = Scale(unit="MB", factor=1e-6)

_CODE = """
import resource, time
began = time.perf_counter()
{statements}
seconds = time.perf_counter() - began
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
_CLIENT = "import cloister.client"
_NEEDED = """
import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
"""
_OURS = """
import openai
import cloister
openai.OpenAI, cloister.OpenAI
"""
_SDK = """
import openai
openai.OpenAI
"""


def _importer(statements: str) -> Callable[[], Sample]:
    def run() -> Sample:
        code = _CODE.format(statements=statements)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        )
        seconds, memory = map(float, done.stdout.split())
        return {"seconds": seconds, "memory": memory}

    return run


def run(context: Context) -> Report:
    """Measure both pairs."""
    client = measure(
        [
            Arm(name="cloister.client", run=_importer(_CLIENT)),
            Arm(name="httpx2 + cryptography", run=_importer(_NEEDED)),
        ],
        context.plan(20, warmups=2),
    )
    sdk = measure(
        [
            Arm(name="openai and cloister.OpenAI", run=_importer(_OURS)),
            Arm(name="openai", run=_importer(_SDK)),
        ],
        context.plan(12, warmups=1),
    )
    ours, needed = "cloister.client", "httpx2 + cryptography"
    return Report(
        title="Importing the client",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=(
            beside(
                "`import cloister.client`: time",
                client,
                ours,
                needed,
                "seconds",
                scale=SECONDS,
                target=at_most(0.4),
            ),
            beside(
                "`import cloister.client`: memory",
                client,
                ours,
                needed,
                "memory",
                scale=_MEGABYTES,
                target=at_most(60.0),
            ),
            difference(
                "`cloister.OpenAI` over `import openai`: time",
                sdk,
                "openai and cloister.OpenAI",
                "openai",
                "seconds",
                scale=SECONDS,
                target=at_most(0.3),
            ),
            difference(
                "`cloister.OpenAI` over `import openai`: memory",
                sdk,
                "openai and cloister.OpenAI",
                "openai",
                "memory",
                scale=_MEGABYTES,
            ),
        ),
        raw={"client": client, "sdk": sdk},
    )
