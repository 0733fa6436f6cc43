"""Makes read-only disks: a directory becomes a file system with a dm-verity tree behind it.

The root and the application are squashfs, which is small. A model is EROFS without compression:
weights do not compress, and the engine maps them straight from the page cache.

Both programs are told every time, owner, identifier and order that they would otherwise take from
the machine (mksquashfs(1) of squashfs-tools 4.5.1, mkfs.erofs(1) of erofs-utils 1.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from cloister.image.footer import DiskFooter
from cloister.image.toolbox import Tools
from cloister.image.verity import seal_disk

NO_IDENTIFIER: Final = "00000000-0000-0000-0000-000000000000"


class FileSystem(StrEnum):
    """What the kernel mounts a disk as."""

    SQUASHFS = "squashfs"
    EROFS = "erofs"


PACK_COMMANDS: Final[Mapping[FileSystem, tuple[str, ...]]] = {
    FileSystem.SQUASHFS: (
        *("mksquashfs", "tree", "disk", "-noappend", "-no-progress", "-quiet"),
        *("-all-root", "-no-xattrs", "-no-exports", "-mkfs-time", "0", "-all-time", "0"),
        *("-comp", "zstd", "-Xcompression-level", "15", "-b", "131072"),
        # No block holds the ends of several files: Linux keeps three of those unpacked, so that
        # whoever reads many small files unpacks them again and again.
        "-no-fragments",
    ),
    FileSystem.EROFS: (
        *("mkfs.erofs", "--quiet", "-T0", f"-U{NO_IDENTIFIER}", "--all-root", "-x-1"),
        *("disk", "tree"),
    ),
}
"""What packs the folder ``tree`` into the file ``disk``."""


def make_disk(
    tree: Path, disk: Path, *, kind: str, file_system: FileSystem, tools: Tools
) -> DiskFooter:
    """Write the contents of the directory `tree` to the file `disk`, sealed.

    Equal trees (names, contents, executable bits, links) give equal bytes. Raises BuildError.
    """
    disk.write_bytes(b"")
    tools.run(PACK_COMMANDS[file_system], reads={"tree": tree}, writes={"disk": disk})
    return seal_disk(disk, kind=kind, fs=file_system.value)


def unpack_disk(disk: Path, target: Path, file_system: FileSystem, tools: Tools) -> None:
    """Extract the files of a disk into the new directory `target`. Raises BuildError."""
    target.mkdir()
    match file_system:
        case FileSystem.SQUASHFS:
            command: tuple[str, ...] = (
                *("unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-force"),
                *("-dest", "target", "disk"),
            )
        case FileSystem.EROFS:
            command = (
                *("fsck.erofs", "--extract=target", "--no-preserve-owner", "--preserve-perms"),
                "disk",
            )
    tools.run(command, reads={"disk": disk}, writes={"target": target})
