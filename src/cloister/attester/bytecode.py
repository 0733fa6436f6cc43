"""Bytecode for measured sources, in a place of its own.

Python reads ``__pycache__`` beside a source unless told otherwise, and believes it where size
and time fit: bytecode that nobody measured would run in place of the source that somebody did.
So the worker runs with ``-X pycache_prefix=<directory>`` (nothing beside the sources is read)
and ``-B`` (it writes none itself).

An empty directory is the plain answer and costs most of a second per start, for compiling. To
save it, the launcher compiles once per set of measured sources: the directory's name is the
digest of all software components, so any changed source, package or interpreter leads to
another, fresh directory. It is as sound as the protection of the launcher's own state: whoever
can write there (mode 0700) could replace the launcher just as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cloister.attester.installation import Installation
from cloister.evidence.component import Component, ComponentKind

COMPILE_TIMEOUT_S: Final = 60.0
KEPT: Final = 3
"""Directories kept for other sets of sources; older ones are removed."""

_SOFTWARE: Final = frozenset(
    {
        ComponentKind.INTERPRETER,
        ComponentKind.STDLIB,
        ComponentKind.DISTRIBUTION,
        ComponentKind.UNOWNED,
    }
)

_COMPILE: Final = """
import sys
sys.path[:] = sys.argv[2:]
for name in sys.argv[1].split(","):
    __import__(name)
"""


def interpreter_flags(prefix: Path | str) -> tuple[str, ...]:
    """Flags under which nothing runs that was not measured.

    ``-I``: no ``PYTHON*`` variable, user directory or current directory; ``-S``: no ``.pth``
    file and no ``sitecustomize``; ``-B`` and ``pycache_prefix``: see above.
    """
    return ("-I", "-S", "-B", "-X", f"pycache_prefix={prefix}")


def bytecode_directory(
    cache: Path,
    installation: Installation,
    components: Iterable[Component],
    *,
    modules: Sequence[str],
) -> Path:
    """Return the directory for `installation` as measured, compiling `modules` if it is new.

    `cache` is a private directory of the launcher. Importing the modules is what compiles
    them; where that fails the directory stays empty and the worker compiles for itself.
    """
    software = [component.encode() for component in components if component.kind in _SOFTWARE]
    key = hashlib.sha256(b"\n".join((",".join(modules).encode(), *software))).hexdigest()
    directory = cache / key[:32]
    if directory.is_dir():
        os.utime(directory)
        return directory
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    _compile(work, installation, modules)
    try:
        work.rename(directory)
    except OSError:  # another launcher was quicker
        shutil.rmtree(work, ignore_errors=True)
    _prune(cache)
    return directory


def _compile(prefix: Path, installation: Installation, modules: Sequence[str]) -> None:
    flags = [flag for flag in interpreter_flags(prefix) if flag != "-B"]
    command = (
        installation.interpreter.python,
        *flags,
        *("-c", _COMPILE, ",".join(modules), *installation.import_path),
    )
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(  # noqa: S603 - the measured interpreter on measured sources
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )


def _prune(cache: Path) -> None:
    with contextlib.suppress(OSError):
        found = [path for path in cache.iterdir() if path.is_dir()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in found[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
