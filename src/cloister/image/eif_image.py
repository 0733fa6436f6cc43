"""What an enclave image (EIF) of ours is made of, and its file in an image's folder.

==================== =====================================================================
kernel               Debian's, as in every image
command line         with the root's hash; no register fixes its length (`cloister.image.eif`)
first ramdisk        init, modules, and a copy of the command line, which the init compares
second ramdisk       ``ramdisk/root.img``: the root as it is on other images' disks;
                     ``ramdisk/application/…``, ``ramdisk/model/…``: files as they are
==================== =====================================================================

PCR0 covers all of it, PCR2 the second ramdisk. A model lies there once, as a file that the engine
maps; for the moment of its unpacking the kernel holds the ramdisk as well.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError
from cloister.image.application import APPLICATION_FOLDER, MODEL_FOLDER
from cloister.image.command_line import ENCLAVE, RAMDISK, command_line
from cloister.image.eif import Eif, EifMeasurements, SectionType, read_eif
from cloister.image.eif_signature import parse_image_signature
from cloister.image.eif_write import DEFAULT_MEMORY, EifParts, Signer
from cloister.image.initrd import Entry, build_initrd, write_archive
from cloister.image.modules import Module
from cloister.image.verity import read_footer

ENCLAVE_IMAGE: Final = "image.eif"
ROOT: Final = "root.img"
RAMDISK_FOLDER: Final = "ramdisk"

_FILE: Final = stat.S_IFREG | 0o444
_FOLDER: Final = stat.S_IFDIR | 0o555
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveFiles:
    """What goes into an enclave image."""

    kernel: Path
    init: bytes
    modules: Sequence[Module]
    root: Path
    """A root disk: its last block says how it is verified."""
    application: Mapping[str, bytes]
    """Files by their path in the application's folder."""
    models: Mapping[str, Path]
    name: str
    version: str
    debug: bool = False


def enclave_parts(files: EnclaveFiles, work: Path) -> EifParts:
    """Write the ramdisks into `work`, and say what to make of them. Equal files give equal parts.

    Raises:
        BuildError: a file is too large for a ramdisk, or the command line too long.
        MalformedError: the root's last block is no footer.
    """
    line = command_line(
        root=read_footer(files.root),
        application=RAMDISK,
        model=RAMDISK,
        debug=files.debug,
        more=ENCLAVE,
    )
    first, second = work / "boot.cpio", work / "contents.cpio"
    first.write_bytes(build_initrd(files.init, files.modules, command_line=line))
    with second.open("wb") as file:
        write_archive(_contents(files), file)
    return EifParts(
        kernel=files.kernel,
        cmdline=line,
        ramdisks=(first, second),
        name=files.name,
        version=files.version,
        built_at=datetime.fromtimestamp(0, UTC),
        # What the operator is asked to reserve: the ramdisks twice while they are unpacked.
        memory=_rounded(DEFAULT_MEMORY + 2 * second.stat().st_size),
    )


def _contents(files: EnclaveFiles) -> list[Entry]:
    application, model = (RAMDISK_FOLDER + folder for folder in (APPLICATION_FOLDER, MODEL_FOLDER))
    folders = {RAMDISK_FOLDER, application, model}
    held: dict[str, bytes | Path] = {f"{RAMDISK_FOLDER}/{ROOT}": files.root}
    for path, content in files.application.items():
        held[f"{application}/{path}"] = content
    for path, source in files.models.items():
        held[f"{model}/{path}"] = source
    folders |= {str(parent) for name in held for parent in Path(name).parents} - {"."}
    return [
        *(Entry(name=name, mode=_FOLDER) for name in folders),
        *(Entry(name=name, mode=_FILE, data=data) for name, data in held.items()),
    ]


def _rounded(size: int) -> int:
    """To whole GiB, as enclaves' memory is reserved in large pages."""
    return -(-size // _GIB) * _GIB


def signed_parts(directory: Path, work: Path, signer: Signer | None) -> EifParts:
    """The parts of the enclave image in `directory`, written into `work`, to be signed.

    Raises:
        ConfigurationError: there is no such image (code ``image.folder``).
        MalformedError, UnsupportedError: as `read_eif`.
    """
    image = directory / ENCLAVE_IMAGE
    found = read_enclave_image(image)
    kernel: Path | None = None
    ramdisks: list[Path] = []
    with image.open("rb") as file:
        for number, section in enumerate(found.sections):
            if section.type not in (SectionType.KERNEL, SectionType.RAMDISK):
                continue
            file.seek(section.offset)
            part = work / f"section-{number}"
            with part.open("wb") as target:
                left = section.size
                while left and (block := file.read(min(left, _MIB))):
                    target.write(block)
                    left -= len(block)
            if section.type is SectionType.KERNEL:
                kernel = part
            else:
                ramdisks.append(part)
    metadata = found.described
    if kernel is None:
        raise RuntimeError("an image that was read has a kernel")
    return EifParts(
        kernel=kernel,
        cmdline=found.cmdline.decode("ascii"),
        ramdisks=tuple(ramdisks),
        name=str(metadata.get("ImageName")),
        version=str(metadata.get("ImageVersion")),
        built_at=datetime.fromtimestamp(0, UTC),
        arm64=found.arm64,
        memory=found.memory,
        cpus=found.cpus,
        signer=signer,
    )


def read_enclave_image(path: Path) -> Eif:
    """Read and measure the file; ConfigurationError (``image.folder``) where there is none."""
    try:
        with path.open("rb") as file:
            return read_eif(file)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror or 'unknown reason'}): an image for enclaves"
            ' has one, which is built where its configuration says platform = "nitro"',
            code="image.folder",
        ) from None


def measurements_of(found: Eif) -> EifMeasurements:
    """The registers of an enclave that is started from an image.

    Raises:
        MalformedError: its signature does not decode.
    """
    if found.signature is None:
        return found.content.measurements(None)
    return found.content.measurements(parse_image_signature(found.signature).certificate_der)
