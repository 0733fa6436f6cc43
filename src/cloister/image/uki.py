"""Unified kernel images: kernel, initrd, command line and name in one executable of the firmware's.

Source: UAPI Group specification "Unified Kernel Image (UKI)", version 1; the code that starts it is
systemd-stub (``linuxx64.efi.stub`` of systemd 252), which measures every section into PCR 11 before
it starts the kernel, and takes the command line from the image alone where Secure Boot is on. Where
it is off, a boot entry of the firmware's may replace the command line: that shows in PCR 9 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import BuildError, MalformedError
from cloister.image.pe import add_section, parse_pe, without_symbols

SECTIONS: Final = (".osrel", ".cmdline", ".initrd", ".linux")
"""In the order in which they lie in the file. The kernel comes last, for it is unpacked in place
behind its section's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UkiParts:
    """What an image is made of, without the code that starts it."""

    kernel: bytes
    """A bzImage with an EFI stub."""
    initrd: bytes
    command_line: str
    os_release: str
    """``os-release(5)``: which image this is, for people."""

    def section(self, name: str) -> bytes:
        """Content of the section `name`, one of `SECTIONS`."""
        return {
            ".osrel": self.os_release.encode(),
            ".cmdline": self.command_line.encode("ascii"),
            ".initrd": self.initrd,
            ".linux": self.kernel,
        }[name]


def os_release(*, version: str, debug: bool = False) -> str:
    """The os-release text of an image; a debug image has another name as well."""
    kind = "-debug" if debug else ""
    return f'ID=cloister{kind}\nNAME="Cloister{kind}"\nVERSION_ID="{version}"\n'


def build_uki(stub: bytes, parts: UkiParts) -> bytes:
    """The image, unsigned. Equal parts give equal bytes.

    Raises:
        BuildError: the stub is none, or has sections of its own where ours belong (code
            ``image.stub``).
    """
    try:
        if any(parse_pe(stub).section(name) for name in SECTIONS):
            raise BuildError("the stub is an image already", code="image.stub")
        image = without_symbols(stub)
        for name in SECTIONS:
            image = add_section(image, name, parts.section(name))
    except MalformedError as error:
        raise BuildError(f"the stub cannot be used: {error}", code="image.stub") from None
    return image
