"""Writes enclave images, bit for bit as AWS' builder would from the same parts.

Source: AWS, aws-nitro-enclaves-image-format at 935dc62 (``src/utils/mod.rs``, ``EifBuilder``).
Equal parts give equal bytes on any machine: no clock is read, and signatures are deterministic.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import BuildError, CloisterError
from cloister.image.eif import (
    CRC,
    FLAG_ARM64,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_CMDLINE_BYTES,
    MAX_SECTIONS,
    SECTION,
    VERSION,
    ContentDigests,
    ContentHasher,
    Eif,
    SectionType,
    read_eif,
)
from cloister.image.eif_signature import sign_image

DEFAULT_MEMORY: Final = 1 << 30
DEFAULT_CPUS: Final = 2
MAX_RAMDISKS: Final = MAX_SECTIONS - 4
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Signs PCR0; the certificate decides PCR8."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EifParts:
    """What an image is made of. The first of `ramdisks` boots, the others are run."""

    kernel: Path
    cmdline: str
    ramdisks: tuple[Path, ...]
    name: str
    version: str
    built_at: datetime
    """For the metadata, which no register covers; a fixed time for a build that repeats."""
    kernel_version: str = "Unknown"
    custom: Mapping[str, object] = field(default_factory=dict)
    arm64: bool = False
    memory: int = DEFAULT_MEMORY
    cpus: int = DEFAULT_CPUS
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.ramdisks) <= MAX_RAMDISKS:
            raise BuildError(
                f"an enclave image has 1 to {MAX_RAMDISKS} ramdisks", code="image.eif_parts"
            )
        if not self.cmdline.isascii() or not self.cmdline.isprintable():
            raise BuildError("a kernel's command line is plain ASCII", code="image.eif_parts")
        if len(self.cmdline) > MAX_CMDLINE_BYTES:
            raise BuildError(
                f"a command line has at most {MAX_CMDLINE_BYTES} bytes", code="image.eif_parts"
            )

    def metadata(self) -> bytes:
        """The metadata section, with the members that AWS' tools ask for and in their order."""
        return json.dumps(
            {
                "ImageName": self.name,
                "ImageVersion": self.version,
                "BuildMetadata": {
                    "BuildTime": self.built_at.isoformat(),
                    "BuildTool": "cloister",
                    "BuildToolVersion": str(VERSION),
                    "OperatingSystem": "Linux",
                    "KernelVersion": self.kernel_version,
                },
                "DockerInfo": {},
                "CustomMetadata": dict(self.custom),
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()


def write_eif(parts: EifParts, target: Path) -> Eif:
    """Write the image to `target`, replacing it as a whole, and return what was written.

    The finished file is read and measured again: a part that changed meanwhile is noticed.

    Raises:
        BuildError: a part cannot be read, or changed while it was written.
        ConfigurationError: key and certificate do not fit.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".eif-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            with made.open("x+b") as file:
                expected = _write(parts, file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                try:
                    written = read_eif(file)
                except CloisterError:
                    raise _changed() from None
            if written.content != expected:
                raise _changed()
            made.chmod(0o644)
            made.replace(target)
    except OSError as error:
        raise BuildError(
            f"the enclave image cannot be written: {error.filename} ({error.strerror})",
            code="image.eif_parts",
        ) from None
    return written


def _write(parts: EifParts, file: BinaryIO) -> ContentDigests:
    cmdline, metadata = parts.cmdline.encode("ascii"), parts.metadata()
    sections: list[tuple[SectionType, Path | bytes]] = [
        (SectionType.KERNEL, parts.kernel),
        (SectionType.CMDLINE, cmdline),
        (SectionType.METADATA, metadata),
        *((SectionType.RAMDISK, path) for path in parts.ramdisks),
    ]
    digests = _measure(sections)
    if parts.signer is not None:
        pcr0 = digests.measurements(None).pcr0
        signed = sign_image(pcr0, certificate=parts.signer.certificate, key=parts.signer.key)
        sections.append((SectionType.SIGNATURE, signed))
    header = _header(parts, [_size(content) for _, content in sections])
    crc = zlib.crc32(header)
    file.write(header + bytes(CRC.size))
    for kind, content in sections:
        head = SECTION.pack(kind, 0, _size(content))
        for block in (head, *_blocks(content)):
            crc = zlib.crc32(block, crc)
            file.write(block)
    file.seek(HEADER.size)
    file.write(CRC.pack(crc))
    return digests


def _measure(sections: Sequence[tuple[SectionType, Path | bytes]]) -> ContentDigests:
    hasher = ContentHasher()
    for kind, content in sections:
        hasher.begin(kind)
        for block in _blocks(content):
            hasher.update(kind, block)
    return hasher.digests()


def _header(parts: EifParts, sizes: list[int]) -> bytes:
    offsets, at = [], HEADER_BYTES
    for size in sizes:
        offsets.append(at)
        at += SECTION.size + size
    empty = [0] * (MAX_SECTIONS - len(sizes))
    flags = FLAG_ARM64 if parts.arm64 else 0
    return HEADER.pack(
        MAGIC, VERSION, flags, parts.memory, parts.cpus, 0, len(sizes),
        *offsets, *empty, *sizes, *empty, 0,
    )  # fmt: skip


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _blocks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _changed() -> BuildError:
    return BuildError(
        "a part of the enclave image changed while it was written; build it again",
        code="image.eif_changed",
    )
