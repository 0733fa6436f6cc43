"""Compiles the guest's init (`cloister/image/init`), which is C because it is process 1.

One static program without a loader: the same compiler and C library give the same bytes, for
nothing of the machine, the folder or the time goes in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cloister.errors import BuildError

Run = Callable[[Sequence[str], Path], None]
"""Runs a program in a folder, to which all paths in its arguments are relative. Raises BuildError
where it fails."""

SOURCES: Final = (
    "init.c",
    "modules.c",
    "disk.c",
    "verity.c",
    "tpm.c",
    "net.c",
    "start.c",
    "worker.c",
    "enclave.c",
)
HEADER: Final = "init.h"
PROGRAM: Final = "init"

COMPILERS: Final = ("musl-gcc", "gcc")
"""The smaller result first (67 kB; glibc's is 740 kB)."""

_FLAGS: Final = (
    *("-std=c11", "-Os", "-Wall", "-Wextra", "-Werror"),
    *("-static", "-s", "-fno-ident", "-Wl,--build-id=none"),
    # The kernel's own headers, behind those of whichever C library it is.
    *("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu"),
)


def compile_command(compiler: str, output: str = PROGRAM) -> tuple[str, ...]:
    """The command that makes `output` from the sources in its working directory."""
    return (compiler, *_FLAGS, "-o", output, *SOURCES)


def compile_init(folder: Path, *, run: Run, compiler: str = COMPILERS[0]) -> bytes:
    """Compile the init in `folder`, an empty one, and return the program.

    Raises:
        BuildError: the compiler fails, or makes no program.
    """
    source = Path(__file__).parent / "init"
    for name in (*SOURCES, HEADER):
        shutil.copyfile(source / name, folder / name)
    run(compile_command(compiler), folder)
    try:
        return (folder / PROGRAM).read_bytes()
    except OSError:
        raise BuildError(f"{compiler} made no init", code="image.init") from None
