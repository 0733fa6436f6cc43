"""Parts of a unified kernel image as platforms without a TPM measure them, and what they need.

SEV-SNP and TDX guests that QEMU starts with ``-kernel`` hash kernel, initrd and command line, which
a UKI holds. Nothing there measures a disk that is attached later: unless the command line itself
names every disk by its dm-verity root, any disk at all would leave the measurement as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cloister.errors import UnsupportedError
from cloister.image.stub import UnifiedKernel

CODE: Final = "image.unpinned"

ROOT: Final = "cloister.root="
DISKS: Final = ("cloister.application=", "cloister.model=")
MEASURED: Final = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot:
    """What a machine is started with instead of a boot disk."""

    kernel: bytes = field(repr=False)
    initrd: bytes = field(repr=False)
    command_line: str


def direct_boot(kernel: UnifiedKernel) -> DirectBoot:
    """The parts of a UKI whose command line names every disk.

    Raises:
        UnsupportedError: it leaves a disk open, to be measured into a register that such a
            platform does not have (code ``image.unpinned``).
    """
    check_pinned(kernel)
    return DirectBoot(
        kernel=kernel.kernel.data, initrd=kernel.initrd, command_line=kernel.command_line
    )


def check_pinned(kernel: UnifiedKernel) -> None:
    """Return only if the command line of a UKI names every disk.

    Raises:
        UnsupportedError: it leaves one open (code ``image.unpinned``).
    """
    words = kernel.command_line.split(" ")
    if not any(word.startswith(ROOT) for word in words):
        raise _open("names no root")
    for disk in DISKS:
        values = [word.removeprefix(disk) for word in words if word.startswith(disk)]
        if len(values) != 1 or values[0] == MEASURED:
            raise _open(f"does not say once which disk {disk.removesuffix('=')} is")


def _open(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the image's command line {why}: without a TPM any disk would measure alike; build it"
        ' with platform = "sev-snp", "tdx" or "gcp-tdx", which names its disks',
        code=CODE,
    )
