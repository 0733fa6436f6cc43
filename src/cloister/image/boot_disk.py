"""One disk out of an image's parts, for clouds that start a machine from a single disk.

Source: UEFI specification 2.10, chapter 5 (GPT). The first partition is the EFI system partition
as it stands in ``esp.img``; root, application and model follow, one partition each, exactly as long
as their files: the image's init finds them by their last block. Identifiers are fixed and gaps are
zero, so that equal parts give equal disks. The firmware measures this table, not that of
``esp.img``, into PCR 5, so its value is predicted from the same lay-out (`boot_disk_head`).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cloister.errors import BuildError

SECTOR: Final = 512
ALIGNMENT: Final = 2048
"""Sectors: partitions begin at whole mebibytes."""
MAX_PARTS: Final = 4
PIECE: Final = 1 << 20

_ENTRIES: Final = 128
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY.size // SECTOR
_ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_DATA: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_IDENTIFIER: Final = "c1015e70-0001-4000-8000-{:012d}"
_NAMES: Final = ("esp", "root", "application", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of sectors of a file, and where it goes on the disk."""

    source: Path
    offset: int
    """In bytes, inside the source."""
    first: int
    """Sector on the disk."""
    sectors: int

    @property
    def last(self) -> int:
        """Sector on the disk, inclusive."""
        return self.first + self.sectors - 1


def write_boot_disk(esp: Path, disks: Sequence[Path], target: Path) -> None:
    """Write the disk `target` from ``esp.img`` and the disks behind it, in order.

    Raises:
        BuildError: ``esp.img`` has no EFI system partition, a part has no whole number of sectors,
            or there are too many (code ``deploy.disk``).
        OSError: a file cannot be read or written.
    """
    pieces, sectors = _lay_out(esp, disks)
    entries = _table(pieces)
    with target.open("wb") as disk:
        disk.truncate(sectors * SECTOR)
        disk.write(_head(entries, sectors))
        for piece in pieces:
            _copy(piece, disk)
        disk.seek((sectors - 1 - _TABLE_SECTORS) * SECTOR)
        disk.write(entries)
        disk.write(_header(entries, sectors, first=False).ljust(SECTOR, b"\0"))


def boot_disk_head(esp: Path, disks: Sequence[Path]) -> bytes:
    """How the disk of `write_boot_disk` begins: all that firmware measures of its table.

    Raises:
        BuildError, OSError: see `write_boot_disk`.
    """
    pieces, sectors = _lay_out(esp, disks)
    return _head(_table(pieces), sectors)


def _head(entries: bytes, sectors: int) -> bytes:
    header = _header(entries, sectors, first=True).ljust(SECTOR, b"\0")
    return _protective_record(sectors) + header + entries


def _lay_out(esp: Path, disks: Sequence[Path]) -> tuple[tuple[Piece, ...], int]:
    """What lies where, and how many sectors the disk has."""
    if 1 + len(disks) > MAX_PARTS:
        raise BuildError(f"a disk has at most {MAX_PARTS} parts", code="deploy.disk")
    offset, sectors = esp_extent(esp)
    pieces = [Piece(source=esp, offset=offset, first=ALIGNMENT, sectors=sectors)]
    for disk in disks:
        size = disk.stat().st_size
        if not size or size % SECTOR:
            raise BuildError(f"{disk.name} has no whole number of sectors", code="deploy.disk")
        first = _aligned(pieces[-1].last + 1)
        pieces.append(Piece(source=disk, offset=0, first=first, sectors=size // SECTOR))
    return tuple(pieces), _aligned(pieces[-1].last + 1 + _TABLE_SECTORS + 1)


def esp_extent(image: Path) -> tuple[int, int]:
    """Where the EFI system partition of a disk begins, in bytes, and its length in sectors.

    Raises:
        BuildError: the disk's table has no such partition within it (code ``deploy.disk``).
    """
    with image.open("rb") as opened:
        head = opened.read((2 + _TABLE_SECTORS) * SECTOR)
    size = image.stat().st_size // SECTOR
    signature = head[SECTOR : SECTOR + 8]
    for at in range(2 * SECTOR, len(head) - _ENTRY.size + 1, _ENTRY.size):
        kind, _, first, last, _, _ = _ENTRY.unpack_from(head, at)
        if kind == _ESP.bytes_le and signature == b"EFI PART" and 34 <= first <= last < size:
            return first * SECTOR, last - first + 1
    raise BuildError(f"{image.name} has no EFI system partition", code="deploy.disk")


def _aligned(sector: int) -> int:
    return -(-sector // ALIGNMENT) * ALIGNMENT


def _table(pieces: Sequence[Piece]) -> bytes:
    entries = b"".join(
        _ENTRY.pack(
            (_DATA if number else _ESP).bytes_le,
            uuid.UUID(_IDENTIFIER.format(number + 1)).bytes_le,
            piece.first,
            piece.last,
            0,
            _NAMES[number].encode("utf-16-le"),
        )
        for number, piece in enumerate(pieces)
    )
    return entries.ljust(_ENTRIES * _ENTRY.size, b"\0")


def _header(entries: bytes, sectors: int, *, first: bool) -> bytes:
    here, other, table = 1, sectors - 1, 2
    if not first:
        here, other, table = other, here, sectors - 1 - _TABLE_SECTORS
    usable = (2 + _TABLE_SECTORS, sectors - 2 - _TABLE_SECTORS)
    identifier = uuid.UUID(_IDENTIFIER.format(0)).bytes_le
    checksum = 0
    for _ in range(2):  # over itself with a checksum of zero, then with the right one
        header = _HEADER.pack(
            *(b"EFI PART", 0x10000, _HEADER.size, checksum, 0),
            *(here, other, *usable, identifier),
            *(table, _ENTRIES, _ENTRY.size, zlib.crc32(entries)),
        )
        checksum = checksum or zlib.crc32(header)
    return header


def _protective_record(sectors: int) -> bytes:
    """So that old tools take the disk for full (UEFI section 5.2.3)."""
    covered = min(sectors - 1, 0xFFFFFFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, covered)
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"


def _copy(piece: Piece, disk: BinaryIO) -> None:
    left = piece.sectors * SECTOR
    with piece.source.open("rb") as source:
        source.seek(piece.offset)
        disk.seek(piece.first * SECTOR)
        while left:
            data = source.read(min(left, PIECE))
            if not data:
                raise BuildError(f"{piece.source.name} became shorter", code="deploy.disk")
            left -= len(data)
            if any(data):
                disk.write(data)
            else:
                disk.seek(len(data), 1)  # stays a hole
