"""The packed initial RAM disk: the same bytes in any folder, and the archive when unpacked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.initrd import Entry, archive
from cloister.image.initrd_pack import COMMANDS, pack_initrd

ARCHIVE = archive([Entry(name="init", mode=0o100755, data=os.urandom(5000) + bytes(90000))])
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libzstd.so.1")


def run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def unpacked(data: bytes) -> bytes:
    """By the same library; zeros behind a frame are nothing of it."""
    zstd = ctypes.CDLL(str(LIBRARY))
    zstd.ZSTD_findFrameCompressedSize.restype = ctypes.c_size_t
    zstd.ZSTD_decompress.restype = ctypes.c_size_t
    size = zstd.ZSTD_findFrameCompressedSize(data, ctypes.c_size_t(len(data)))
    room = ctypes.create_string_buffer(len(ARCHIVE))
    made = zstd.ZSTD_decompress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(size))
    assert data[size:] == bytes(-size % 4)
    return room.raw[:made]


@pytest.mark.skipif(
    shutil.which("gcc") is None or not LIBRARY.exists(), reason="no gcc, or no libzstd"
)
def test_equal_bytes_in_any_folder_and_the_archive_when_unpacked(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "a/longer/way"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        packed.append(pack_initrd(ARCHIVE, folder, run=run))
    assert packed[0] == packed[1]
    assert len(packed[0]) < 10000 < len(ARCHIVE)
    assert unpacked(packed[0]) == ARCHIVE


@pytest.mark.parametrize("frame", range(4, 8))
def test_a_further_archive_can_stand_behind_it(tmp_path: Path, frame: int) -> None:
    """Linux takes up the next one at a multiple of four bytes."""
    content = b"\x28\xb5\x2f\xfd" + b"x" * (frame - 4)

    def pretend(command: Sequence[str], folder: Path) -> None:
        if command == COMMANDS[-1]:
            (folder / "packed").write_bytes(content)

    packed = pack_initrd(ARCHIVE, tmp_path, run=pretend)
    assert len(packed) % 4 == 0
    assert packed.rstrip(b"\0") == content


@pytest.mark.parametrize("written", [None, b"", b"0707"], ids=["nothing", "empty", "unpacked"])
def test_a_program_that_does_not_pack(tmp_path: Path, written: bytes | None) -> None:
    def pretend(command: Sequence[str], folder: Path) -> None:
        if command == COMMANDS[-1] and written is not None:
            (folder / "packed").write_bytes(written)

    with pytest.raises(BuildError) as caught:
        pack_initrd(ARCHIVE, tmp_path, run=pretend)
    assert caught.value.code == "image.initrd"
