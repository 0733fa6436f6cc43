"""Programs for Node.js in `tests/interop/node/`, with packages pinned by hash.

The packages are installed once beside the running interpreter's, where `make clean` removes them
with the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "interop" / "node"


class Peer:
    """A running Node.js process that answers one command at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"name": command, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer
        return answer


def installed(script: str) -> Path:
    """Return a directory with `script` and the packages of the lock file, installed once."""
    digest = hashlib.sha256()
    for source in ("package.json", "package-lock.json"):
        digest.update((SOURCES / source).read_bytes())
    home = Path(sys.prefix) / "interop-node" / digest.hexdigest()[:16]
    home.parent.mkdir(parents=True, exist_ok=True)
    # Tests run in several processes: the first one installs, and the others wait for it.
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            _install(home)
        copy = Path(shutil.copy(SOURCES / script, home / f".{script}"))
        copy.replace(home / script)  # under whoever reads it, at once
    return home


def _install(home: Path) -> None:
    work = Path(f"{home}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for source in ("package.json", "package-lock.json"):
        shutil.copy(SOURCES / source, work)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"npm could not install {SOURCES}:\n{done.stderr}"
    work.rename(home)


@contextlib.contextmanager
def running(script: str) -> Iterator[Peer]:
    """Run `script` until the end of the block."""
    with subprocess.Popen(
        ["node", script],
        cwd=installed(script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        peer = Peer(process)
        peer.ask("versions")
        yield peer
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
