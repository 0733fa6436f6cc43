"""The kernel's command line of an image: what the firmware measures of the guest's settings.

It names the root by its dm-verity parameters, and says of the other disks whether there is one and
how it is known: `MEASURED` into a register before it is read, so that root and application can be
updated apart, or named here like the root, where the platform has no register for it.
"""

from __future__ import annotations

from typing import Final

from cloister.errors import BuildError
from cloister.image.footer import DiskFooter

MEASURED: Final = "measured"
NONE: Final = "none"
RAMDISK: Final = "ramdisk"
"""In an enclave: files that PCR0 and PCR2 cover, and no disk at all."""

MAX_BYTES: Final = 2047
"""x86 kernels take 2048 bytes with the ending zero (``COMMAND_LINE_SIZE``)."""

KERNEL: Final = (
    "console=ttyS0",
    "quiet",
    "loglevel=4",
    # A panic restarts the machine at once, with registers that begin anew; nothing is dumped.
    "panic=-1",
    "oops=panic",
    # Nor is the kernel's log kept in a store that the machine offers for it (ACPI's ERST).
    "erst_disable",
    # No kernel memory to user space, no unsigned code into the kernel, whoever asks.
    "lockdown=confidentiality",
    "module.sig_enforce=1",
    "random.trust_cpu=on",
    "slab_nomerge",
    "init_on_alloc=1",
    "init_on_free=1",
    "page_alloc.shuffle=1",
    "vsyscall=none",
    "efi=noruntime",
)

ENCLAVE: Final = (
    # As AWS' own images: an enclave ends by a reset through the keyboard controller.
    "reboot=k",
    # Of tmpfs there is half the memory only, and the model lies in it.
    "rootfstype=ramfs",
    "cloister.platform=nitro",
)
"""What a Nitro enclave's has besides."""


def command_line(
    *,
    root: DiskFooter,
    application: DiskFooter | str = MEASURED,
    model: DiskFooter | str = MEASURED,
    debug: bool = False,
    more: tuple[str, ...] = (),
) -> str:
    """The command line of an image with these disks; `more` are arguments of the kernel's.

    Raises:
        BuildError: it is too long, or an argument is not printable ASCII without spaces (code
            ``image.command_line``).
    """
    arguments = [*KERNEL, *more, f"cloister.root={root.argument()}"]
    for kind, disk in (("application", application), ("model", model)):
        value = disk.argument() if isinstance(disk, DiskFooter) else disk
        if isinstance(disk, str) and disk not in {MEASURED, NONE, RAMDISK}:
            raise BuildError(
                f"a disk is {MEASURED}, {NONE}, {RAMDISK}, or named by its footer",
                code="image.command_line",
            )
        arguments.append(f"cloister.{kind}={value}")
    if debug:
        arguments.append("cloister.debug=1")
    line = " ".join(arguments)
    plain = all(word and word.isascii() and word.isprintable() for word in arguments)
    if not plain or len(line.split(" ")) != len(arguments) or len(line) > MAX_BYTES:
        raise BuildError(
            "the command line is too long, or an argument holds a space or something unprintable",
            code="image.command_line",
        )
    return line
