"""MRTD of a TDX guest, computed from its firmware (TDVF). Unproven: no real TDVF was compared.

Sources: Intel, "TDX Virtual Firmware Design Guide", revision 1.01, section 11 (metadata); Intel,
"TDX Module Base Architecture Specification", section 12.2 (MRTD: SHA-384 over one block for every
page added, and for every 256 bytes extended one block and those bytes); EDK2's
``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`` for the table of GUIDs that ends the file. Integers
are little-endian.

In which order a hypervisor adds and extends pages decides the value, and hypervisors differ:
Linux' KVM extends each page right after adding it, others extend a region once all of it was added.
"""

from __future__ import annotations

import enum
import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cloister.errors import MalformedError

CODE: Final = "image.tdvf"

MAX_FIRMWARE_BYTES: Final = 64 << 20
MAX_SECTIONS: Final = 64
MAX_PAGES: Final = 1 << 17
"""Half a GiB: more memory than any firmware lays out."""

PAGE: Final = 4096
CHUNK: Final = 256

_TABLE_END: Final = 32
"""Bytes behind the table of GUIDs: the reset vector."""
_TABLE_FOOTER: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_METADATA_OFFSET: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_ENTRY: Final = Struct("<H16s")
_DESCRIPTOR: Final = Struct("<4sIII")
_SECTION: Final = Struct("<IIQQII")

_EXTEND: Final = 0x1
"""Attribute ``MR.EXTEND``: the section's content is measured, not only that it is there."""
_AUGMENT: Final = 0x2
"""Attribute ``PAGE.AUG``: the guest accepts these pages later; nothing is measured."""


class SectionType(enum.IntEnum):
    """What a section of the metadata is (design guide, table 11-3)."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7


class Order(enum.StrEnum):
    """When a page's content is measured."""

    EACH_PAGE = "page"
    """Right after the page was added (Linux' KVM)."""
    EACH_SECTION = "section"
    """After all of its section was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdvfSection:
    """One region of memory that the firmware wants, with where its content lies in the file."""

    type: int
    offset: int
    size: int
    address: int
    memory_size: int
    attributes: int


def parse_tdvf(data: bytes) -> tuple[TdvfSection, ...]:
    """The sections of a firmware's TDX metadata.

    Raises MalformedError (code ``image.tdvf``), and nothing else.
    """
    if not 0 < len(data) <= MAX_FIRMWARE_BYTES:
        raise _fail(f"has {len(data)} bytes")
    at = len(data) - int.from_bytes(_entry(data, _METADATA_OFFSET), "little")
    if not 0 <= at <= len(data) - _DESCRIPTOR.size:
        raise _fail("points to its metadata outside the file")
    signature, length, version, count = _DESCRIPTOR.unpack_from(data, at)
    if (signature, version) != (b"TDVF", 1) or not 1 <= count <= MAX_SECTIONS:
        raise _fail("has no TDX metadata of version 1")
    if length != _DESCRIPTOR.size + count * _SECTION.size or at + length > len(data):
        raise _fail("has TDX metadata of a wrong length")
    sections = tuple(
        TdvfSection(
            offset=offset,
            size=size,
            address=address,
            memory_size=memory,
            type=kind,
            attributes=attributes,
        )
        for offset, size, address, memory, kind, attributes in _SECTION.iter_unpack(
            data[at + _DESCRIPTOR.size : at + length]
        )
    )
    _check(sections, len(data))
    return sections


def mrtd(data: bytes, *, order: Order = Order.EACH_PAGE) -> bytes:
    """MRTD (48 bytes) of a guest that starts with the firmware `data`.

    Raises MalformedError (code ``image.tdvf``), and nothing else.
    """
    digest = hashlib.sha384()
    for section in parse_tdvf(data):
        if section.attributes & _AUGMENT or section.type == SectionType.PERM_MEM:
            continue
        content = data[section.offset : section.offset + section.size]
        for block in _measured(section, content.ljust(section.memory_size, b"\0"), order):
            digest.update(block)
    return digest.digest()


def _measured(section: TdvfSection, content: bytes, order: Order) -> Iterator[bytes]:
    pages = range(0, section.memory_size, PAGE)
    extends = bool(section.attributes & _EXTEND)
    for page in pages:
        yield _block(b"MEM.PAGE.ADD", section.address + page)
        if extends and order is Order.EACH_PAGE:
            yield from _extended(section, content, page)
    if extends and order is Order.EACH_SECTION:
        for page in pages:
            yield from _extended(section, content, page)


def _extended(section: TdvfSection, content: bytes, page: int) -> Iterator[bytes]:
    for at in range(page, page + PAGE, CHUNK):
        yield _block(b"MR.EXTEND", section.address + at)
        yield content[at : at + CHUNK]


def _block(operation: bytes, address: int) -> bytes:
    """128 bytes: which operation, and on which guest physical address."""
    return (operation.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(128, b"\0")


def _entry(data: bytes, wanted: uuid.UUID) -> bytes:
    """The content of one entry in the table of GUIDs, which is read backwards from its end."""
    end = len(data) - _TABLE_END
    if end < _ENTRY.size:
        raise _fail("is cut off")
    size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
    start = end - size
    if guid != _TABLE_FOOTER.bytes_le or size < _ENTRY.size or start < 0:
        raise _fail("does not end with a table of GUIDs")
    at = end - _ENTRY.size
    while at - _ENTRY.size >= start:
        size, guid = _ENTRY.unpack_from(data, at - _ENTRY.size)
        if size < _ENTRY.size or at - size < start:
            raise _fail("has a table of GUIDs that does not decode")
        if guid == wanted.bytes_le:
            return data[at - size : at - _ENTRY.size]
        at -= size
    raise _fail("says nothing about TDX")


def _check(sections: tuple[TdvfSection, ...], length: int) -> None:
    pages = 0
    taken: list[tuple[int, int]] = []
    for section in sections:
        end = section.address + section.memory_size
        if section.type not in set(SectionType):
            raise _fail("has a section of an unknown type")
        if section.offset + section.size > length or section.size > section.memory_size:
            raise _fail("has a section that is not in the file, or larger than its memory")
        if section.address % PAGE or section.memory_size % PAGE or end > 1 << 52:
            raise _fail("has a section that is not of whole pages")
        if any(start < end and section.address < stop for start, stop in taken):
            raise _fail("has two sections in one place")
        taken.append((section.address, end))
        if section.type != SectionType.PERM_MEM:
            pages += section.memory_size // PAGE
    if pages > MAX_PAGES:
        raise _fail(f"lays out more than {MAX_PAGES} pages")


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the TDX firmware {why}", code=CODE)
