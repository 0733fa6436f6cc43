"""Packs the initial RAM disk with zstd: firmware, stub and kernel each hash the whole of it.

Unpacking takes the kernel a fraction of what it takes them to hash what is saved. xz would be
smaller still, and slower to unpack than everything saved. The program that packs is a page of C
over the library of the build's own programs (`cloister/image/pack`), so the bytes do not depend on
which zstd, or which Python, a builder has.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.init_program import Run

SOURCE: Final = Path(__file__).parent / "pack" / "pack.c"

COMMANDS: Final = (
    ("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "pack.c", "-o", "pack", "-l:libzstd.so.1"),
    ("./pack", "initrd", "packed"),
)
MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""Of a zstd frame (RFC 8878, section 3.1.1)."""


def pack_initrd(initrd: bytes, folder: Path, *, run: Run) -> bytes:
    """Pack an archive, in `folder`, an empty one from which programs may be started.

    What comes out is filled up with zeros to a multiple of four bytes: Linux looks for a further
    archive behind the first, and only there.

    Raises:
        BuildError: the program cannot be made or fails, or packs nothing (code ``image.initrd``).
    """
    shutil.copyfile(SOURCE, folder / SOURCE.name)
    (folder / "initrd").write_bytes(initrd)
    for command in COMMANDS:
        run(command, folder)
    try:
        packed = (folder / "packed").read_bytes()
    except OSError:
        packed = b""
    if not packed.startswith(MAGIC):
        raise BuildError("the initial RAM disk was not packed", code="image.initrd")
    return packed + bytes(-len(packed) % 4)
