"""The initial RAM disk: the init, the kernel's modules in order, and nothing else.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst`` (cpio ``newc``).
Owners, times and inode numbers are fixed, so equal parts give equal bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.image.modules import Module

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 512

CONSOLE: Final = (5, 1)
"""Major and minor number of ``/dev/console``, which a kernel opens for the init at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, a directory or a device of an archive."""

    name: str
    mode: int
    """Type and permissions, as `stat` has them."""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_initrd(
    init: bytes, modules: Sequence[Module], *, command_line: str | None = None
) -> bytes:
    """The archive that a kernel starts `init` from.

    `command_line` puts a copy in, which the init compares with what it was started with: for
    platforms whose registers do not cover where the command line ends (Nitro).
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
            data="".join(name + "\n" for name in names).encode(),
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
    content = bytearray()
    for number, entry in enumerate(sorted(entries, key=lambda entry: entry.name), start=1):
        content += _record(number, entry)
    content += _record(0, Entry(name=_TRAILER, mode=0))
    return bytes(content) + bytes(-len(content) % _ALIGNMENT)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        number,
        entry.mode,
        *(0, 0),  # owner and group
        1,  # links
        0,  # time
        len(entry.data),
        *(0, 0),  # device that holds the file
        *entry.device,
        len(name),
        0,  # no checksum in this variant
    )
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    head += bytes(-len(head) % 4)
    return head + entry.data + bytes(-len(entry.data) % 4)
