"""A bubblewrap that somebody is quicker than: a file is exchanged after its path was found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_PROGRAM = """#!{python}
import os, sys
words = list(sys.argv)
while "--args" in words:  # as bubblewrap does, in place
    at = words.index("--args")
    with open(int(words[at + 1]), "rb") as file:
        words[at : at + 2] = os.fsdecode(file.read()).split("\\0")[:-1]
found = [os.path.realpath(word) if word.startswith("/proc/self/fd/") else word for word in words]
if {other!r}:
    os.replace({other!r}, {path!r})
os.execv({bwrap!r}, found)
"""


def exchanging_bwrap(at: Path, path: Path, other: Path | None) -> str:
    """Write it to `at`; it finds paths as bubblewrap does, and then puts `other` at `path`."""
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    text = _PROGRAM.format(
        python=sys.executable, other=str(other or ""), path=str(path), bwrap=bwrap
    )
    at.write_text(text)
    at.chmod(0o700)
    return str(at)
