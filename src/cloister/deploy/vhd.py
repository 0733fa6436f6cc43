"""Fixed virtual hard disks, the one disk format that Azure takes.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006), sections
"Fixed Hard Disk Image" and "Hard Disk Footer Format"; Azure, "Prepare a Windows VHD or VHDX to
upload to Azure": sizes are whole mebibytes. A fixed disk is the raw bytes and a footer of 512
bytes, big-endian. Time and identifier depend on the content alone, so equal disks give equal files.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO, Final

from cloister.errors import BuildError

MEBIBYTE: Final = 1 << 20
MAX_BYTES: Final = 4095 * (1 << 30)
"""Azure's largest OS disk from a VHD."""
FOOTER_BYTES: Final = 512

_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_FIXED: Final = 2
_NO_OFFSET: Final = 0xFFFFFFFFFFFFFFFF
# Readers take the size from "current size" only where a program that they know made the disk;
# from others they take it from cylinders, heads and sectors, which cannot say every size.
_CREATOR: Final = b"win "
_CREATOR_VERSION: Final = 0x000A0000
_HOST: Final = b"Wi2k"


def write_vhd(raw: Path, target: Path) -> None:
    """Write the fixed disk `target` with the bytes of `raw`, padded with zeros to a mebibyte.

    Raises:
        BuildError: `raw` is empty or larger than Azure takes (code ``deploy.disk``).
        OSError: a file cannot be read or written.
    """
    digest, size = hashlib.sha256(), 0
    with raw.open("rb") as source, target.open("wb") as disk:
        while piece := source.read(MEBIBYTE):
            digest.update(piece)
            size += len(piece)
            _put(disk, piece)
        if not 0 < size <= MAX_BYTES:
            raise BuildError("the disk is empty or larger than Azure takes", code="deploy.disk")
        padded = -(-size // MEBIBYTE) * MEBIBYTE
        disk.truncate(padded)
        disk.seek(padded)
        disk.write(footer(padded, digest.digest()[:16]))


def footer(size: int, identifier: bytes) -> bytes:
    """The last 512 bytes of a fixed disk of `size` bytes."""
    cylinders, heads, sectors = geometry(size // 512)

    def packed(checksum: int) -> bytes:
        return _FOOTER.pack(
            *(b"conectix", 2, 0x00010000, _NO_OFFSET, 0),
            *(_CREATOR, _CREATOR_VERSION, _HOST, size, size),
            *(cylinders, heads, sectors, _FIXED, checksum, identifier, 0),
        )

    return packed(~sum(packed(0)) & 0xFFFFFFFF)


def geometry(total: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for so many sectors (the specification's appendix)."""
    total = min(total, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        rest = total // sectors
    else:
        sectors = 17
        rest = total // sectors
        heads = max(4, (rest + 1023) // 1024)
        if rest >= heads * 1024 or heads > 16:
            sectors, heads = 31, 16
            rest = total // sectors
        if rest >= heads * 1024:
            sectors, heads = 63, 16
            rest = total // sectors
    return rest // heads, heads, sectors


def _put(disk: BinaryIO, piece: bytes) -> None:
    if any(piece):
        disk.write(piece)
    else:
        disk.seek(len(piece), 1)  # stays a hole
