"""The initial RAM disk: what is in it, and in which order modules are loaded."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister.image.initrd import build_initrd
from cloister.image.modules import Module

MODULES = tuple(
    Module(name=name, data=name.encode() * 7, depends=()) for name in ("zz_first", "aa_second")
)


def test_the_archive_is_read_by_cpio(tmp_path: Path) -> None:
    program = shutil.which("cpio")
    if program is None:
        pytest.skip("cpio is not installed")
    first, second = MODULES
    second = dataclasses.replace(second, only_for=("pci:v00001AE0*", "virtio:d00000001v*"))
    archive = build_initrd(b"\x7fELF init", (first, second), command_line="quiet")
    subprocess.run(
        [program, "-id", "--quiet", "--no-absolute-filenames", "--nonmatching", "dev/console"],
        input=archive,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "init").read_bytes() == b"\x7fELF init"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "modules/list").read_text() == (
        "00-zz_first.ko\n01-aa_second.ko pci:v00001AE0* virtio:d00000001v*\n"
    )
    assert (tmp_path / "modules/01-aa_second.ko").read_bytes() == b"aa_second" * 7
    assert (tmp_path / "etc/cmdline").read_text() == "quiet\n"


def records(archive: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Name, mode, content and device of every record, by the format's description."""
    found: list[tuple[str, int, bytes, tuple[int, int]]] = []
    stream = io.BytesIO(archive)
    while True:
        head = stream.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[at : at + 8], 16) for at in range(6, 110, 8)]
        name = stream.read(fields[11])[:-1].decode()
        stream.seek(-stream.tell() % 4, 1)
        data = stream.read(fields[6])
        stream.seek(-stream.tell() % 4, 1)
        if name == "TRAILER!!!":
            return found
        assert fields[2] == fields[3] == fields[5] == 0  # owner, group, time
        found.append((name, fields[1], data, (fields[9], fields[10])))


def test_the_archive_holds_the_init_the_modules_and_nothing_else() -> None:
    archive = build_initrd(b"init", MODULES)
    found = records(archive)
    assert [name for name, *_ in found] == [
        "dev",
        "dev/console",
        "init",
        "modules",
        "modules/00-zz_first.ko",
        "modules/01-aa_second.ko",
        "modules/list",
    ]
    assert next(device for name, _, _, device in found if name == "dev/console") == (5, 1)
    assert len(archive) % 512 == 0
    assert archive == build_initrd(b"init", MODULES)
    assert archive != build_initrd(b"init", MODULES[::-1])
