"""The initial RAM disk: the init, the kernel's modules in order, and nothing else.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst`` (cpio ``newc``).
Owners, times and inode numbers are fixed, so equal parts give equal bytes.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cloister.errors import BuildError
from cloister.image.modules import Module

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 512
_BLOCK: Final = 1 << 20

MAX_FILE_BYTES: Final = (1 << 32) - 1
"""Sizes are eight hexadecimal digits."""

CONSOLE: Final = (5, 1)
"""Major and minor number of ``/dev/console``, which a kernel opens for the init at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, a directory or a device of an archive."""

    name: str
    mode: int
    """Type and permissions, as `stat` has them."""
    data: bytes | Path = b""
    """Of a file, or where it lies."""
    device: tuple[int, int] = (0, 0)


def build_initrd(
    init: bytes, modules: Sequence[Module], *, command_line: str | None = None
) -> bytes:
    """The archive that a kernel starts `init` from.

    `command_line` puts a copy in, which the init compares with what it was started with: for
    platforms whose processor does not measure it, or not where it ends (Nitro).
    """
    names = [f"{number:02d}-{module.name}.ko" for number, module in enumerate(modules)]
    entries = [
        Entry(name="init", mode=stat.S_IFREG | 0o755, data=init),
        Entry(name="dev", mode=stat.S_IFDIR | 0o755),
        Entry(name="dev/console", mode=stat.S_IFCHR | 0o600, device=CONSOLE),
        Entry(name="modules", mode=stat.S_IFDIR | 0o755),
        Entry(
            name="modules/list",
            mode=stat.S_IFREG | 0o644,
            data="".join(
                " ".join((name, *module.only_for)) + "\n"
                for name, module in zip(names, modules, strict=True)
            ).encode(),
        ),
        *(
            Entry(name=f"modules/{name}", mode=stat.S_IFREG | 0o644, data=module.data)
            for name, module in zip(names, modules, strict=True)
        ),
    ]
    if command_line is not None:
        entries += [
            Entry(name="etc", mode=stat.S_IFDIR | 0o755),
            Entry(
                name="etc/cmdline", mode=stat.S_IFREG | 0o644, data=command_line.encode() + b"\n"
            ),
        ]
    return archive(entries)


def archive(entries: Iterable[Entry]) -> bytes:
    """Entries in the order of their names, which puts directories before what is in them."""
    content = io.BytesIO()
    write_archive(entries, content)
    return content.getvalue()


def write_archive(entries: Iterable[Entry], target: BinaryIO) -> None:
    """The same, written to `target` piece by piece.

    Raises:
        BuildError: a file is larger than the format can say (code ``image.ramdisk``), or cannot be
            read.
    """
    written = 0
    for number, entry in enumerate(sorted(entries, key=lambda entry: entry.name), start=1):
        written += _write_record(number, entry, target)
    written += _write_record(0, Entry(name=_TRAILER, mode=0), target)
    target.write(bytes(-written % _ALIGNMENT))


def _write_record(number: int, entry: Entry, target: BinaryIO) -> int:
    """Write one record, and return its size."""
    name = entry.name.encode() + b"\0"
    size = _size(entry.data)
    if size > MAX_FILE_BYTES:
        raise BuildError(
            f"{entry.name} has {size:,} bytes; a file of a ramdisk has at most {MAX_FILE_BYTES:,}",
            code="image.ramdisk",
        )
    fields = (
        number,
        entry.mode,
        *(0, 0),  # owner and group
        1,  # links
        0,  # time
        size,
        *(0, 0),  # device that holds the file
        *entry.device,
        len(name),
        0,  # no checksum in this variant
    )
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    head += bytes(-len(head) % 4)
    target.write(head)
    if _copy(entry.data, target) != size:
        raise BuildError(f"{entry.name} changed while it was read", code="image.ramdisk")
    padding = bytes(-size % 4)
    target.write(padding)
    return len(head) + size + len(padding)


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _copy(data: bytes | Path, target: BinaryIO) -> int:
    if isinstance(data, bytes):
        return target.write(data)
    copied = 0
    with data.open("rb") as source:
        while block := source.read(_BLOCK):
            copied += target.write(block)
    return copied
