"""Parts of the guest's init as programs of their own: its sources with another beginning."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.image.init_program import COMPILERS, compile_init

COMPILER = next((name for name in COMPILERS if shutil.which(name)), None)
SOURCE = Path(compile_init.__code__.co_filename).parent / "init"
HEADERS = ("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu")

needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler (musl-tools or gcc) is installed"
)


def compile_harness(folder: Path, harness: str, *sources: str, instead: Sequence[str] = ()) -> Path:
    """The program of `harness` and of the init's `sources`; `instead` are functions that they call
    in the place of others (``open=opened``)."""
    assert COMPILER is not None
    (folder / "harness.c").write_text(harness)
    flags = ("-std=gnu11", "-static", f"-I{SOURCE}", *(f"-D{one}" for one in instead), *HEADERS)
    files = ("harness.c", *(str(SOURCE / name) for name in sources))
    command = (COMPILER, *flags, "-o", "program", *files)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "program"
