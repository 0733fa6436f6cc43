"""The disk that firmware starts from."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.image.esp import (
    ESP_TYPE,
    FIRST_SECTOR,
    MEBIBYTE,
    SECTOR,
    layout_for,
    partition_table,
    write_esp,
)

NEEDS_TOOLS = pytest.mark.skipif(
    shutil.which("mcopy") is None or shutil.which("mkfs.vfat") is None,
    reason="mtools or dosfstools is not installed (scripts/setup image)",
)


def run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def test_small_changes_of_an_image_leave_the_table_as_it_is() -> None:
    table = partition_table(layout_for(19 * MEBIBYTE))
    assert table == partition_table(layout_for(20 * MEBIBYTE))
    assert table != partition_table(layout_for(60 * MEBIBYTE))


def test_header_and_table_as_the_specification_has_them() -> None:
    layout = layout_for(1)
    header, entries = partition_table(layout)
    assert header[:8] == b"EFI PART"
    assert len(header) == 92
    (stated,) = struct.unpack_from("<I", header, 16)
    assert stated == zlib.crc32(header[:16] + bytes(4) + header[20:])
    assert struct.unpack_from("<I", header, 88)[0] == zlib.crc32(entries)
    assert entries[:16] == ESP_TYPE.bytes_le
    first, last = struct.unpack_from("<QQ", entries, 32)
    assert (first, last) == (FIRST_SECTOR, layout.last_sector)
    assert not any(entries[128:])


@NEEDS_TOOLS
def test_the_image_is_where_firmware_looks(tmp_path: Path) -> None:
    uki = bytes(range(256)) * 9000
    disks = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        layout = write_esp(uki, tmp_path / f"{name}.img", folder=folder, run=run)
        assert not any(folder.iterdir())
        disks.append((tmp_path / f"{name}.img").read_bytes())
    assert disks[0] == disks[1]
    assert len(disks[0]) == layout.disk_sectors * SECTOR
    partition = f"{tmp_path / 'one.img'}@@{FIRST_SECTOR * SECTOR}"
    read = subprocess.run(
        ["mtype", "-i", partition, "::/EFI/BOOT/BOOTX64.EFI"], capture_output=True, check=True
    )
    assert read.stdout == uki
    second = disks[0][-SECTOR:]
    assert second[:8] == b"EFI PART"
    assert struct.unpack_from("<QQ", second, 24) == (layout.disk_sectors - 1, 1)
