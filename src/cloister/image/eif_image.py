"""An enclave image (EIF) from the parts of an image: kernel, initrd, command line, disks.

PCR0 to PCR2 hash sections without their lengths (`cloister.image.eif`), so the initrd gets its own
copy of the command line (``/etc/cmdline``), with which the init compares what it was started with.
The disks are files in the second ramdisk, which is PCR2.

Unproven: no enclave was started from such an image, and the init so far looks for disks among block
devices only, of which an enclave has none.
"""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError
from cloister.image.direct_boot import direct_boot
from cloister.image.eif_write import EifParts, Signer
from cloister.image.image_files import APPLICATION, MODEL, read_image
from cloister.image.initrd import Entry, archive

ROOT: Final = "root.img"
DISKS: Final = "disks"

_FILE: Final = stat.S_IFREG | 0o444
_FOLDER: Final = stat.S_IFDIR | 0o755


def enclave_parts(directory: Path, work: Path, *, signer: Signer | None = None) -> EifParts:
    """Write the ramdisks of the image in `directory` into `work`, and say what to make of them.

    Equal images give equal parts. The image's command line has to name every disk.

    Raises:
        ConfigurationError: a file is missing (code ``image.folder``).
        MalformedError, UnsupportedError: as `read_image` and `direct_boot`.
    """
    files = read_image(directory)
    boot = direct_boot(files.kernel)
    kernel, first, second = (work / name for name in ("kernel", "boot.cpio", "disks.cpio"))
    kernel.write_bytes(boot.kernel)
    first.write_bytes(boot.initrd + bytes(-len(boot.initrd) % 4) + _copy(boot.command_line))
    second.write_bytes(_disks(directory))
    return EifParts(
        kernel=kernel,
        cmdline=boot.command_line,
        ramdisks=(first, second),
        name=files.name.name,
        version=files.name.version,
        built_at=datetime.fromtimestamp(0, UTC),
        signer=signer,
    )


def _copy(command_line: str) -> bytes:
    """A second archive behind the initrd's own: Linux unpacks them one after the other."""
    line = command_line.encode("ascii") + b"\n"
    entries = (
        Entry(name="etc", mode=_FOLDER),
        Entry(name="etc/cmdline", mode=_FILE, data=line),
    )
    return archive(entries)


def _disks(directory: Path) -> bytes:
    entries = [Entry(name=DISKS, mode=_FOLDER)]
    for name in (ROOT, APPLICATION, MODEL):
        try:
            data = (directory / name).read_bytes()
        except FileNotFoundError:
            if name == ROOT:
                raise ConfigurationError(
                    f"{directory / name} is missing", code="image.folder"
                ) from None
            continue
        entries.append(Entry(name=f"{DISKS}/{name}", mode=_FILE, data=data))
    return archive(entries)
