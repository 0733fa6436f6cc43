"""The volumes inside OVMF's code, as its start measures them into PCR 0.

Sources: UEFI Platform Initialization specification 1.8, volume 3, sections 3.2.1 (firmware volume
header), 3.2.3 (files) and 3.2.4 (sections); EDK2, ``OvmfPkg/OvmfPkgX64.fdf``: one file of the flash
image holds, compressed by LZMA, a volume for the early start (PEI) and one for all the rest (DXE).

The DXE volume is measured as it was unpacked, so its digest follows from the file. The PEI volume
is measured after its own modules have run in it and written to their variables: its digest is a
boot's. Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import lzma
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from cloister.errors import MalformedError

CODE: Final = "image.firmware"

MAX_CODE_BYTES: Final = 64 << 20
MAX_UNPACKED_BYTES: Final = 64 << 20
"""OVMF's volumes have 13 MiB."""
_MAX_VOLUMES: Final = 16
_LZMA_MEMORY: Final = 256 << 20

_LZMA: Final = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
"""``LZMA_CUSTOM_DECOMPRESS_GUID``."""
_VOLUME: Final = Struct("<16x16sQ4sIHHHBB")
_STEP: Final = 4096
"""Volumes begin at whole pages of the flash image."""
_FILE_BYTES: Final = 24
_ERASED: Final = b"\xff" * _FILE_BYTES
_LARGE: Final = 0xFFFFFF
"""Of a size of 24 bits: the real one is behind it."""
_IMAGE_FILE: Final = 0x0B
_DXE_CORE: Final = 0x05
_GUIDED: Final = 0x02
_VOLUME_IMAGE: Final = 0x17


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVolume:
    """One volume that the firmware unpacks into memory and runs."""

    data: bytes = field(repr=False)
    changes_itself: bool
    """Whether it runs before its measurement is taken: the digest of a boot is another."""

    @property
    def sha256(self) -> bytes:
        """The digest that is measured, unless it changes itself."""
        return hashlib.sha256(self.data).digest()


def unpacked_volumes(code: bytes) -> tuple[FirmwareVolume, ...]:
    """The volumes that OVMF's `code` unpacks, in order; at least one of them measured as it is.

    Nothing is authenticated.

    Raises MalformedError (code ``image.firmware``), and nothing else.
    """
    if len(code) > MAX_CODE_BYTES:
        raise _fail(f"it has {len(code)} bytes; at most {MAX_CODE_BYTES} are read")
    found: list[FirmwareVolume] = []
    for volume in _volumes(code):
        for kind, body in _files(volume):
            if kind == _IMAGE_FILE:
                found += _unpacked(body)
    if all(volume.changes_itself for volume in found):
        raise _fail("it holds no compressed volume with a DXE core, as OVMF's does")
    return tuple(found)


def _unpacked(body: bytes) -> Iterator[FirmwareVolume]:
    for kind, section, header in _sections(body):
        if kind != _GUIDED or section[:16] != _LZMA.bytes_le:
            continue
        for inner, data, _ in _sections(_decompressed(section, header)):
            if inner == _VOLUME_IMAGE:
                volume = data[: _volume_size(data)]
                yield FirmwareVolume(
                    data=volume,
                    changes_itself=all(one != _DXE_CORE for one, _ in _files(volume)),
                )


def _decompressed(section: bytes, header: int) -> bytes:
    start = int.from_bytes(section[16:18], "little") - header
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
    try:
        data = unpacker.decompress(section[max(start, 0) :], MAX_UNPACKED_BYTES)
    except lzma.LZMAError:
        raise _fail("its compressed part does not unpack") from None
    if not unpacker.eof:
        raise _fail("its compressed part is not whole, or too large")
    return data


def _volumes(code: bytes) -> Iterator[bytes]:
    at, count = 0, 0
    while at < len(code):
        if code[at + 40 : at + 44] != b"_FVH":
            at += _STEP
            continue
        count += 1
        size = _volume_size(code[at:])
        if size < _STEP or count > _MAX_VOLUMES:
            raise _fail("its volumes cannot be told apart")
        yield code[at : at + size]
        at += size


def _volume_size(data: bytes) -> int:
    if len(data) < _VOLUME.size or data[40:44] != b"_FVH":
        raise _fail("a volume has no header")
    size: int = _VOLUME.unpack_from(data)[1]
    if not _VOLUME.size <= size <= len(data):
        raise _fail("a volume is longer than what holds it")
    return size


def _files(volume: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each file."""
    _, _, _, _, header, _, extended, _, _ = _VOLUME.unpack_from(volume)
    at = header
    if extended:
        at = extended + int.from_bytes(volume[extended + 16 : extended + 20], "little")
    at = (at + 7) & ~7
    while at + _FILE_BYTES <= len(volume) and volume[at : at + _FILE_BYTES] != _ERASED:
        size, start = int.from_bytes(volume[at + 20 : at + 23], "little"), at + _FILE_BYTES
        if size == _LARGE:
            size, start = int.from_bytes(volume[at + 24 : at + 32], "little"), at + 32
        if size < start - at or at + size > len(volume):
            raise _fail("a file is longer than its volume")
        yield volume[at + 18], volume[start : at + size]
        at = (at + size + 7) & ~7


def _sections(body: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Type, content and size of the header of each section."""
    at = 0
    while at + 4 <= len(body):
        size, header = int.from_bytes(body[at : at + 3], "little"), 4
        if size == _LARGE:
            size, header = int.from_bytes(body[at + 4 : at + 8], "little"), 8
        if size < header or at + size > len(body):
            raise _fail("a section is longer than what holds it")
        yield body[at + 3], body[at + header : at + size], header
        at = (at + size + 3) & ~3


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the firmware's code cannot be read: {why}", code=CODE)
