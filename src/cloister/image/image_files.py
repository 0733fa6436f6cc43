"""An image's folder, read for what decides its measurements.

::

    uki.efi           unified kernel image                     registers 4, 9, 11
    esp.img           the disk it lies on, with its table      register 5
    application.img   its last block names it                  register 14
    model.img         its last block names it                  register 15
    configuration.json  for which platform it is: in clouds all parts lie on one disk

Which of the last two there are, and whether the image names them itself, is what the command line
in the unified kernel image says (`cloister.image.command_line`).

Only the beginning of the boot disk and the last block of the others are read. Whether a disk's
content leads to the root hash in its last block is the builder's to check; a machine that boots
one where it does not stops at the first wrong block.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.image.authenticode import MAX_PE_BYTES
from cloister.image.boot_disk import boot_disk_head
from cloister.image.boot_events import BootParts
from cloister.image.command_line import MEASURED, NONE
from cloister.image.configuration import Platform
from cloister.image.footer import BLOCK, DiskFooter, parse_footer
from cloister.image.partition_table import PREFIX_BYTES, measured_table
from cloister.image.secure_boot import SECURE_BOOT_OFF, SecureBoot
from cloister.image.stub import UnifiedKernel, parse_uki
from cloister.strictjson import parse_json_object

UKI: Final = "uki.efi"
ESP: Final = "esp.img"
ROOT: Final = "root.img"
APPLICATION: Final = "application.img"
MODEL: Final = "model.img"
CONFIGURATION: Final = "configuration.json"
MAX_CONFIGURATION_BYTES: Final = 8 << 20

_DEBUG_ARGUMENT: Final = "cloister.debug="
"""With any value: the init does not look at it."""
_DEBUG_SUFFIX: Final = "-debug"
_FOLDER: Final = "image.folder"
_DISK: Final = "image.disk_line"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """Which image this is, by the os-release text inside its unified kernel image."""

    name: str
    version: str
    debug: bool
    """Whether its name or its command line says that it lets somebody look in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """What was read."""

    kernel: UnifiedKernel
    partition_table: bytes
    application: bytes | None
    model: bytes | None
    platform: Platform = Platform.TPM_BOOT
    """What makes its guest's evidence."""

    @property
    def name(self) -> ImageName:
        """Which image this is.

        Raises:
            MalformedError: its os-release text does not say (code ``image.uki``).
        """
        return image_name(self.kernel)

    def parts(self, secure_boot: SecureBoot = SECURE_BOOT_OFF) -> BootParts:
        """What a boot in this Secure Boot state measures."""
        return BootParts(
            kernel=self.kernel,
            partition_table=self.partition_table,
            secure_boot=secure_boot,
            application=self.application,
            model=self.model,
        )


def read_image(directory: Path) -> ImageFiles:
    """Read the folder of an image.

    Raises:
        ConfigurationError: a file is missing or cannot be read (code ``image.folder``).
        MalformedError, UnsupportedError: one does not decode, or cannot be predicted.
        BuildError: its parts do not go on one disk (code ``deploy.disk``).
    """
    platform = read_platform(directory)
    kernel = parse_uki(_beginning(directory / UKI, MAX_PE_BYTES + 1))
    return ImageFiles(
        kernel=kernel,
        partition_table=measured_table(_boot_disk(directory, platform)),
        application=_line(directory / APPLICATION, "application", kernel),
        model=_line(directory / MODEL, "model", kernel),
        platform=platform,
    )


def read_platform(directory: Path) -> Platform:
    """What the image's effective configuration says makes its evidence; a TPM where it does not.

    Raises:
        ConfigurationError: it cannot be read, or names none that is known (code
            ``image.folder``).
    """
    path = directory / CONFIGURATION
    if not path.exists():
        return Platform.TPM_BOOT
    try:
        data = _beginning(path, MAX_CONFIGURATION_BYTES + 1)
        document = parse_json_object(data, limit=MAX_CONFIGURATION_BYTES, what=CONFIGURATION)
        return Platform(str(document.get("platform", Platform.TPM_BOOT)))
    except (MalformedError, ValueError):
        raise ConfigurationError(
            f"{path} names no platform that is known here", code=_FOLDER
        ) from None


def _boot_disk(directory: Path, platform: Platform) -> bytes:
    """How the disk begins that the firmware starts from."""
    esp = directory / ESP
    if not platform.one_disk:
        return _beginning(esp, PREFIX_BYTES)
    disks = [directory / name for name in (ROOT, APPLICATION, MODEL)]
    try:
        return boot_disk_head(esp, [disk for disk in disks if disk.exists()])
    except OSError as error:
        raise _unreadable(esp, error) from None


def image_name(kernel: UnifiedKernel) -> ImageName:
    """Name and version by os-release(5); see `ImageFiles.name`."""
    text = (kernel.file.content(".osrel") or b"").decode("utf-8", "replace")
    told = any(word.startswith(_DEBUG_ARGUMENT) for word in kernel.command_line.split(" "))
    return name_and_version(text, debug=told)


def name_and_version(text: str, *, debug: bool) -> ImageName:
    """Name and version in an os-release text; see `ImageFiles.name`."""
    pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name, version = (pairs.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))
    if not name or not version:
        raise MalformedError(
            "the unified kernel image does not say its ID and VERSION_ID", code="image.uki"
        )
    return ImageName(name=name, version=version, debug=debug or name.endswith(_DEBUG_SUFFIX))


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from None


def _line(path: Path, kind: str, kernel: UnifiedKernel) -> bytes | None:
    """The line that the init measures for the disk of `kind`, newline included; ``None`` for none.

    A disk that the command line names has to be the one in the folder, where there is one.
    """
    name = f"cloister.{kind}="
    words = [word for word in kernel.command_line.split(" ") if word.startswith(name)]
    if len(words) > 1:
        raise MalformedError(f"the command line says twice which disk {name} is", code=_DISK)
    value = words[0].removeprefix(name) if words else NONE
    if value == NONE:
        return None
    try:
        footer = _footer(path)
    except FileNotFoundError:
        if value != MEASURED:
            return _named(kind, value)
        raise ConfigurationError(
            f"{path} is missing, which the image measures", code=_FOLDER
        ) from None
    line = footer.line() if value == MEASURED else _named(kind, value)
    if footer.kind != kind or footer.line() != line:
        raise MalformedError(f"{path} is another disk than the image is for", code=_DISK)
    return line


def _named(kind: str, value: str) -> bytes:
    """The line of a disk whose parameters stand on the command line, as the init writes it."""
    block = f"cloister-disk/1 {kind} {value.replace(':', ' ')}\n".encode().ljust(BLOCK, b"\0")
    return parse_footer(block).line()


def _footer(path: Path) -> DiskFooter:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - BLOCK))
            return parse_footer(file.read(BLOCK))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read: {error.strerror or 'unknown reason'}", code=_FOLDER
    )
