"""LlamaIndex, in an environment of its own: it goes with an older OpenAI SDK than Cloister's.

`scripts/setup tests` installs it from `requirements/llama-index.txt`, every package pinned by
hash, where `make clean` removes it with the rest. A test runs a script there and reads what it
prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "llama-index.txt"
SCRIPTS = ROOT / "tests" / "interop" / "llama_index"
QUIET = {
    "DO_NOT_TRACK": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
}


def environment() -> Path:
    """Where the environment for this lock file is, or would be."""
    return Path(sys.prefix) / f"llama-index-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"


def run(script: str, settings: object) -> Any:
    """Run a script of ours with `settings` as JSON, and return the JSON that it prints last."""
    done = python("-W", "ignore", str(SCRIPTS / script), json.dumps(settings))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python, with Cloister from this checkout."""
    kept = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    return subprocess.run(
        [str(environment() / "bin" / "python"), *arguments],
        env={**kept, **QUIET, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=cwd,
    )
