"""The Enclave Image Format (EIF), version 4: the one file that a Nitro enclave boots from.

Source: AWS, aws-nitro-enclaves-image-format at 935dc62 (``src/defs/mod.rs``, ``src/utils``), which
is the only description there is. Numbers are big-endian::

    header   548 bytes  ".eif", version, flags, memory, CPUs, reserved, number of sections,
                        32 offsets, 32 sizes, unused, CRC-32 of all but these last four bytes
    section  12 bytes   type, flags, size; then the data

Sections stand in one order only: kernel, command line, metadata, ramdisks, signature. Others are
refused: AWS' builder and its reader hash in different orders there, and nobody could say which
registers such a file gets.

**What the registers do not fix.** PCR0 to PCR2 hash the contents of sections one after another,
without their lengths. Bytes moved from the beginning of the command line to the end of the kernel
(which ignores them) leave every register as it was, and the enclave boots with a shorter command
line. So nothing that security rests on may come from the command line unless the measured init
compares the whole of ``/proc/cmdline`` with a copy of its own.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from cloister.errors import MalformedError, UnsupportedError
from cloister.strictjson import JsonObject, parse_json_object

MAGIC: Final = b".eif"
VERSION: Final = 4
MAX_SECTIONS: Final = 32
FLAG_ARM64: Final = 1
"""In the header's flags; cleared for x86-64. The only flag there is."""

HEADER: Final = struct.Struct(f">4sHHQQHH{MAX_SECTIONS}Q{MAX_SECTIONS}QI")
"""The header without its CRC."""

CRC: Final = struct.Struct(">I")
SECTION: Final = struct.Struct(">HHQ")
HEADER_BYTES: Final = HEADER.size + CRC.size

PCR_BYTES: Final = 48
MAX_SMALL_BYTES: Final = 1 << 20
"""Longest metadata and signature, which are read into memory; AWS' tool writes a few KiB."""

MAX_CMDLINE_BYTES: Final = 4096
"""Linux' COMMAND_LINE_SIZE is 2048 on x86-64 and arm64."""

_BLOCK: Final = 1 << 20


class SectionType(enum.IntEnum):
    """What a section holds."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Where a section's data lie: `offset` and `size` in bytes, the section's header left out."""

    type: SectionType
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EifMeasurements:
    """Registers of an enclave started from an image, 48 bytes (SHA-384) each.

    PCR3 and PCR4 are not the image's: the parent instance's role and its id.
    """

    pcr0: bytes
    """Kernel, command line and every ramdisk."""
    pcr1: bytes
    """Kernel, command line and the first ramdisk."""
    pcr2: bytes
    """The other ramdisks."""
    pcr8: bytes | None
    """The signing certificate; None without one (the enclave's register is then zero)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eif:
    """A decoded image. Nothing is authenticated; a CRC keeps out accidents only."""

    arm64: bool
    memory: int
    """Bytes that the image asks for where the operator names none."""
    cpus: int
    sections: tuple[Section, ...]
    cmdline: bytes
    metadata: bytes
    """JSON that no register covers: whoever hands the image on may have written anything."""
    signature: bytes | None = field(repr=False)
    """The signature section's data (`cloister.image.eif_signature`)."""
    crc32: int
    content: ContentDigests

    @property
    def described(self) -> JsonObject:
        """The metadata decoded; empty where they are no JSON object."""
        try:
            return parse_json_object(self.metadata, limit=MAX_SMALL_BYTES, what="the metadata")
        except MalformedError:
            return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDigests:
    """SHA-384 over the data of sections, 48 bytes each, not yet extended into a register."""

    image: bytes
    bootstrap: bytes
    application: bytes

    def measurements(self, certificate: bytes | None) -> EifMeasurements:
        """The registers, with the signing `certificate` (DER) if the image is signed."""
        return EifMeasurements(
            pcr0=extended(self.image),
            pcr1=extended(self.bootstrap),
            pcr2=extended(self.application),
            pcr8=None if certificate is None else extended(hashlib.sha384(certificate).digest()),
        )


def extended(digest: bytes) -> bytes:
    """A register that was zero and then extended once with a SHA-384 `digest`."""
    return hashlib.sha384(bytes(PCR_BYTES) + digest).digest()


class ContentHasher:
    """Hashes sections in the order in which they stand."""

    def __init__(self) -> None:
        self._image = hashlib.sha384()
        self._bootstrap = hashlib.sha384()
        self._application = hashlib.sha384()
        self._ramdisks = 0

    def begin(self, kind: SectionType) -> None:
        """A section of this kind begins."""
        self._ramdisks += kind is SectionType.RAMDISK

    def update(self, kind: SectionType, data: bytes) -> None:
        """Some of its data; metadata and signature are not measured."""
        if kind in (SectionType.METADATA, SectionType.SIGNATURE):
            return
        self._image.update(data)
        # The first ramdisk boots the enclave, with kernel and command line; the others are run.
        (self._application if self._ramdisks > 1 else self._bootstrap).update(data)

    def digests(self) -> ContentDigests:
        """What was hashed so far."""
        return ContentDigests(
            image=self._image.digest(),
            bootstrap=self._bootstrap.digest(),
            application=self._application.digest(),
        )


def read_eif(file: BinaryIO) -> Eif:
    """Decode and measure an image; `file` is read once from its beginning to its end.

    The whole file is hashed, 1 MiB at a time.

    Raises:
        MalformedError: it is no such file, is not whole, or its CRC differs.
        UnsupportedError: an EIF of another version.
    """
    raw = _exactly(file, HEADER_BYTES, "the header")
    sections, flags, memory, cpus = _header(raw)
    crc = zlib.crc32(raw[: HEADER.size])
    hasher = ContentHasher()
    found: list[Section] = []
    small: dict[SectionType, bytes] = {}
    for offset, size in sections:
        head = _exactly(file, SECTION.size, "a section's header")
        crc = zlib.crc32(head, crc)
        section = _section(head, offset=offset, size=size)
        found.append(section)
        hasher.begin(section.type)
        kept = bytearray()
        for block in _blocks(file, size):
            crc = zlib.crc32(block, crc)
            hasher.update(section.type, block)
            if section.type in _LIMITS:
                kept += block
        if section.type in _LIMITS:
            small[section.type] = bytes(kept)
    if file.read(1):
        raise _malformed("has bytes after its last section")
    _check_order([section.type for section in found])
    (declared,) = CRC.unpack(raw[HEADER.size :])
    if declared != crc:
        raise _malformed("has another CRC than its header says: it is damaged")
    return Eif(
        arm64=bool(flags & FLAG_ARM64),
        memory=memory,
        cpus=cpus,
        sections=tuple(found),
        cmdline=small[SectionType.CMDLINE],
        metadata=small[SectionType.METADATA],
        signature=small.get(SectionType.SIGNATURE),
        crc32=crc,
        content=hasher.digests(),
    )


_LIMITS: Final = {
    SectionType.CMDLINE: MAX_CMDLINE_BYTES,
    SectionType.METADATA: MAX_SMALL_BYTES,
    SectionType.SIGNATURE: MAX_SMALL_BYTES,
}
"""Sections that are kept in memory, and how long they may be."""


def _header(raw: bytes) -> tuple[list[tuple[int, int]], int, int, int]:
    """Offsets (of section headers) and sizes; flags, memory, CPUs."""
    magic, version, flags, memory, cpus, reserved, count, *rest = HEADER.unpack(raw[: HEADER.size])
    if magic != MAGIC:
        raise _malformed("does not begin with .eif")
    if version != VERSION:
        raise UnsupportedError(
            f"the image is of EIF version {version}; only version {VERSION} is read",
            code="image.eif_version",
        )
    offsets, sizes, unused = rest[:MAX_SECTIONS], rest[MAX_SECTIONS:-1], rest[-1]
    if flags & ~FLAG_ARM64 or reserved or unused:
        raise _malformed("sets bits that mean nothing")
    if count > MAX_SECTIONS or any(offsets[count:]) or any(sizes[count:]):
        raise _malformed("lists more sections than it says it has")
    at = HEADER_BYTES
    for offset, size in zip(offsets[:count], sizes[:count], strict=True):
        if offset != at:
            raise _malformed("has gaps or overlaps between its sections")
        at += SECTION.size + size
    return list(zip(offsets[:count], sizes[:count], strict=True)), flags, memory, cpus


def _section(head: bytes, *, offset: int, size: int) -> Section:
    number, flags, own_size = SECTION.unpack(head)
    try:
        kind = SectionType(number)
    except ValueError:
        raise _malformed("has a section of an unknown type") from None
    if flags or own_size != size:
        raise _malformed("has a section that differs from what the header says of it")
    if size > _LIMITS.get(kind, size):
        raise _malformed(f"has a {kind.name.lower()} section of {size} bytes, which is too long")
    return Section(type=kind, offset=offset + SECTION.size, size=size)


def _check_order(kinds: list[SectionType]) -> None:
    signed = kinds[-1:] == [SectionType.SIGNATURE]
    ramdisks = len(kinds) - 3 - signed
    expected = [SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA]
    expected += [SectionType.RAMDISK] * ramdisks + [SectionType.SIGNATURE] * signed
    if ramdisks < 1 or kinds != expected:
        raise _malformed(
            "does not hold a kernel, a command line, metadata and ramdisks, in this order"
        )


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise _malformed("ends inside a section")
        size -= len(block)
        yield block


def _exactly(file: BinaryIO, size: int, what: str) -> bytes:
    data = b"".join(_blocks_or_less(file, size))
    if len(data) != size:
        raise _malformed(f"ends before the end of {what}")
    return data


def _blocks_or_less(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (block := file.read(size)):
        size -= len(block)
        yield block


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the enclave image {why}", code="image.eif")
