"""dm-verity: the hash tree behind a disk, so that the kernel refuses every altered block.

Format: Linux ``Documentation/admin-guide/device-mapper/verity.rst``, hash type 1, SHA-256 over salt
and block, blocks of 4096 bytes, the topmost level first, no superblock of cryptsetup's (what
``veritysetup format --no-superblock`` writes). The salt is the same for all disks: equal files give
equal disks, and a salt protects nothing where the root hash is public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from cloister.errors import BuildError
from cloister.image.footer import BLOCK, DiskFooter, parse_footer

HASH: Final = 32
PER_BLOCK: Final = BLOCK // HASH
SALT: Final = hashlib.sha256(b"cloister/verity/1").digest()
READ: Final = 256 * BLOCK


def seal_disk(path: Path, *, kind: str, fs: str) -> DiskFooter:
    """Append hash tree and footer to the file system in `path`.

    Memory stays small whatever the size. BuildError if there is nothing to seal.
    """
    with path.open("r+b") as disk:
        size = disk.seek(0, 2)
        if size == 0:
            raise BuildError(f"{path.name} is empty: there is nothing to seal", code="image.disk")
        disk.write(bytes(-size % BLOCK))
        data_blocks = -(-size // BLOCK)
        footer = DiskFooter(
            kind=kind,
            fs=fs,
            data_blocks=data_blocks,
            hash_start=data_blocks,
            root_hash=_append_tree(disk, data_blocks).hex(),
            salt=SALT.hex(),
        )
        disk.seek(0, 2)
        disk.write(footer.encode())
    return footer


def read_footer(path: Path) -> DiskFooter:
    """What a disk in a file says of itself. Raises BuildError or MalformedError."""
    try:
        with path.open("rb") as disk:
            disk.seek(-BLOCK, 2)
            return parse_footer(disk.read(BLOCK))
    except OSError as error:
        raise BuildError(
            f"{path} cannot be read: {error.strerror}", code="image.disk_file"
        ) from None


def root_hash_of(path: Path, data_blocks: int) -> str:
    """The root hash of the first `data_blocks` of a file, computed anew."""
    with path.open("rb") as disk:
        level = b"".join(_hashes(disk, 0, data_blocks))
    while len(level) > HASH:
        level = b"".join(
            _hash(level[at : at + BLOCK].ljust(BLOCK, b"\0")) for at in range(0, len(level), BLOCK)
        )
    return level.hex()


def _append_tree(disk: BinaryIO, data_blocks: int) -> bytes:
    """Write all levels, the topmost first, and return the root hash."""
    sizes = _level_sizes(data_blocks)
    starts = [data_blocks + sum(sizes[level + 1 :]) for level in range(len(sizes))]
    below_start, below_size = 0, data_blocks
    for start, size in zip(starts, sizes, strict=True):
        at = start * BLOCK
        for hashes in _hashes(disk, below_start, below_size):
            disk.seek(at)
            at += disk.write(hashes)
        disk.seek(at)
        disk.write(bytes((start + size) * BLOCK - at))
        below_start, below_size = start, size
    if not sizes:
        return b"".join(_hashes(disk, 0, 1))
    disk.seek(starts[-1] * BLOCK)
    return _hash(disk.read(BLOCK))


def _level_sizes(data_blocks: int) -> list[int]:
    """Blocks of each level, from the one right above the data up to a single block.

    A disk of one block has no level: its hash is the root hash.
    """
    sizes: list[int] = []
    below = data_blocks
    while below > 1:
        below = -(-below // PER_BLOCK)
        sizes.append(below)
    return sizes


def _hashes(disk: BinaryIO, start: int, blocks: int) -> Iterator[bytes]:
    """The hashes of consecutive blocks, joined, a piece at a time."""
    salted = hashlib.sha256(SALT)
    end = (start + blocks) * BLOCK
    for at in range(start * BLOCK, end, READ):
        disk.seek(at)
        piece = memoryview(disk.read(min(READ, end - at)))
        joined = bytearray()
        for offset in range(0, len(piece), BLOCK):
            one = salted.copy()
            one.update(piece[offset : offset + BLOCK])
            joined += one.digest()
        yield bytes(joined)


def _hash(block: bytes) -> bytes:
    return hashlib.sha256(SALT + block).digest()
