"""The disk that firmware starts from: a GPT with one EFI system partition that holds the image.

Source: UEFI specification 2.10, chapters 5 (GPT) and 13.3 (media; ``\\EFI\\BOOT\\BOOTX64.EFI``).
The file system is made by mkfs.vfat and mtools, without root or loop devices. Identifiers, times
and sizes are fixed, so that equal images give equal disks, and the partition table, which the
firmware measures into PCR 5, depends on the disk's size alone.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.image.init_program import Run

SECTOR: Final = 512
FIRST_SECTOR: Final = 2048
"""Of the partition: one mebibyte, as every tool aligns it."""
_ENTRIES: Final = 128
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY.size // SECTOR
_TAIL_SECTORS: Final = _TABLE_SECTORS + 1
"""Behind the partition: the second copy of the table and of the header."""

ESP_TYPE: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
PARTITION_ID: Final = uuid.UUID("c1015e70-0000-4000-8000-000000000001")
DISK_ID: Final = uuid.UUID("c1015e70-0000-4000-8000-000000000002")
_VOLUME_ID: Final = "C1015E70"
_LABEL: Final = "CLOISTER"

MEBIBYTE: Final = 1 << 20
_MIN_MEBIBYTES: Final = 40
"""Below 65525 clusters a file system is not FAT32, which some firmware insists on."""
_ROOM_MEBIBYTES: Final = 8
_STEP_MEBIBYTES: Final = 8
"""Sizes come in steps, so that small changes of an image leave PCR 5 as it is."""
_EPOCH_1980: Final = 315532800
"""The first second that FAT can say."""

BOOT_FILE: Final = ("EFI", "BOOT", "BOOTX64.EFI")


@dataclass(frozen=True, slots=True, kw_only=True)
class EspLayout:
    """Sizes of the disk, in sectors of 512 bytes."""

    partition_sectors: int

    @property
    def last_sector(self) -> int:
        """The last one of the partition."""
        return FIRST_SECTOR + self.partition_sectors - 1

    @property
    def disk_sectors(self) -> int:
        """All of them."""
        return FIRST_SECTOR + self.partition_sectors + _TAIL_SECTORS


def layout_for(uki_bytes: int) -> EspLayout:
    """The layout of a disk for an image of this size."""
    needed = -(-uki_bytes // MEBIBYTE) + _ROOM_MEBIBYTES
    mebibytes = max(_MIN_MEBIBYTES, -(-needed // _STEP_MEBIBYTES) * _STEP_MEBIBYTES)
    return EspLayout(partition_sectors=mebibytes * MEBIBYTE // SECTOR)


def partition_table(layout: EspLayout) -> tuple[bytes, bytes]:
    """The first header (92 bytes) and the whole table of entries (16 KiB)."""
    entry = _ENTRY.pack(
        ESP_TYPE.bytes_le,
        PARTITION_ID.bytes_le,
        FIRST_SECTOR,
        layout.last_sector,
        0,
        _LABEL.encode("utf-16-le"),
    )
    entries = entry.ljust(_ENTRIES * _ENTRY.size, b"\0")
    return _header(layout, entries, here=1, other=layout.disk_sectors - 1, table=2), entries


def write_esp(uki: bytes, target: Path, *, folder: Path, run: Run) -> EspLayout:
    """Write the disk `target` that starts `uki`; `folder` is an empty one to work in.

    Raises:
        BuildError: a tool fails.
    """
    layout = layout_for(len(uki))
    fat, program = folder / "esp.fat", folder / "uki.efi"
    with fat.open("wb") as file:
        file.truncate(layout.partition_sectors * SECTOR)
    program.write_bytes(uki)
    os.utime(program, (_EPOCH_1980, _EPOCH_1980))
    for command in fat_commands():
        run(command, folder)
    _assemble(layout, fat, target)
    fat.unlink()
    program.unlink()
    return layout


def fat_commands() -> tuple[tuple[str, ...], ...]:
    """The commands that make ``esp.fat`` from ``uki.efi`` in their working directory.

    ``SOURCE_DATE_EPOCH`` and ``TZ`` come with the first word, for `Run` gives no environment.
    """
    timeless = ("env", f"SOURCE_DATE_EPOCH={_EPOCH_1980}", "TZ=UTC", "MTOOLS_SKIP_CHECK=1")
    folders = tuple("::/" + "/".join(BOOT_FILE[:depth]) for depth in range(1, len(BOOT_FILE)))
    boot_file = "::/" + "/".join(BOOT_FILE)
    make = ("mkfs.vfat", "-F", "32", "-s", "1", "-i", _VOLUME_ID, "-n", _LABEL, "--invariant")
    return (
        (*timeless, *make, "esp.fat"),
        (*timeless, "mmd", "-i", "esp.fat", *folders),
        (*timeless, "mcopy", "-m", "-i", "esp.fat", "uki.efi", boot_file),
    )


def _assemble(layout: EspLayout, fat: Path, target: Path) -> None:
    header, entries = partition_table(layout)
    last = layout.disk_sectors - 1
    second = _header(layout, entries, here=last, other=1, table=last - _TABLE_SECTORS)
    with target.open("wb") as disk:
        disk.write(_protective_record(layout))
        disk.write(header.ljust(SECTOR, b"\0"))
        disk.write(entries)
        disk.seek(FIRST_SECTOR * SECTOR)
        with fat.open("rb") as content:
            while piece := content.read(MEBIBYTE):
                disk.write(piece)
        disk.write(entries)
        disk.write(second.ljust(SECTOR, b"\0"))


def _header(layout: EspLayout, entries: bytes, *, here: int, other: int, table: int) -> bytes:
    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, checksum, 0),
            *(here, other, 2 + _TABLE_SECTORS, layout.disk_sectors - _TAIL_SECTORS - 1),
            DISK_ID.bytes_le,
            *(table, _ENTRIES, _ENTRY.size, zlib.crc32(entries)),
        )

    return packed(zlib.crc32(packed(0)))


def _protective_record(layout: EspLayout) -> bytes:
    """So that old tools take the disk for full (UEFI section 5.2.3)."""
    entry = struct.pack(
        "<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, layout.disk_sectors - 1
    )
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"
