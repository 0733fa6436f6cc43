"""Portable executables, as far as a unified kernel image needs them: reading and adding sections.

Source: Microsoft "PE Format" (revision of 2024). Little-endian; PE32+ only, which is what UEFI
starts on 64-bit machines.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError

_SECTION: Final = struct.Struct("<8sIIIIIIHHI")
_READABLE_DATA: Final = 0x40000040
"""IMAGE_SCN_CNT_INITIALIZED_DATA and IMAGE_SCN_MEM_READ."""
_MAX_SECTIONS: Final = 96

_POINTER_TO_SYMBOLS: Final = 8
"""Offset in the COFF header of the table of symbols and their number."""

_SIZE_OF_INITIALIZED_DATA: Final = 8
_ALIGNMENTS: Final = 32
_SIZE_OF_IMAGE: Final = 56
_SIZE_OF_HEADERS: Final = 60
"""Offsets in the optional header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One entry of the section table."""

    name: str
    virtual_size: int
    virtual_address: int
    raw_size: int
    raw_offset: int

    def content(self, image: bytes) -> bytes:
        """What is loaded of it: the file's bytes without the padding."""
        return image[self.raw_offset : self.raw_offset + min(self.virtual_size, self.raw_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeHeaders:
    """Where things are in an image."""

    coff: int
    """Offset of the COFF header."""
    optional: int
    """Offset of the optional header."""
    section_table: int
    section_alignment: int
    file_alignment: int
    size_of_headers: int
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section | None:
        """The first section called `name`."""
        return next((section for section in self.sections if section.name == name), None)


def parse_pe(image: bytes) -> PeHeaders:
    """Decode the headers of a PE32+ image.

    Raises MalformedError (code ``image.pe``), and nothing else.
    """
    try:
        (offset,) = struct.unpack_from("<I", image, 0x3C)
        coff, optional = offset + 4, offset + 24
        count, _, _, _, size = struct.unpack_from("<HIIIH", image, coff + 2)
        magic = image[optional : optional + 2]
        if image[:2] != b"MZ" or image[offset:coff] != b"PE\0\0" or magic != b"\x0b\x02":
            raise _malformed("is no executable for 64 bits")
        alignments = struct.unpack_from("<II", image, optional + _ALIGNMENTS)
        (size_of_headers,) = struct.unpack_from("<I", image, optional + _SIZE_OF_HEADERS)
        if count > _MAX_SECTIONS:
            raise _malformed(f"has {count} sections")
        table = optional + size
        sections = tuple(
            _read_section(image, table + number * _SECTION.size) for number in range(count)
        )
    except struct.error:
        raise _malformed("ends inside its headers") from None
    if any(not value or value & (value - 1) for value in alignments):
        raise _malformed("has an alignment that is no power of two")
    if any(one.raw_offset + one.raw_size > len(image) for one in sections):
        raise _malformed("has a section that ends beyond the file")
    return PeHeaders(
        coff=coff,
        optional=optional,
        section_table=table,
        section_alignment=alignments[0],
        file_alignment=alignments[1],
        size_of_headers=size_of_headers,
        sections=sections,
    )


def _read_section(image: bytes, offset: int) -> Section:
    name, virtual_size, address, raw_size, raw_offset, *_ = _SECTION.unpack_from(image, offset)
    return Section(
        name=name.rstrip(b"\0").decode("ascii", "replace"),
        virtual_size=virtual_size,
        virtual_address=address,
        raw_size=raw_size,
        raw_offset=raw_offset,
    )


def add_section(image: bytes, name: str, data: bytes) -> bytes:
    """`image` with one more section of readable data behind all others.

    Raises:
        MalformedError: `image` does not decode, or its headers have no room for one more.
    """
    headers = parse_pe(image)
    entry = headers.section_table + len(headers.sections) * _SECTION.size
    if entry + _SECTION.size > headers.size_of_headers or any(image[entry : entry + 40]):
        raise _malformed("has no room for another section in its headers")
    end = max((one.virtual_address + one.virtual_size for one in headers.sections), default=0)
    address = _aligned(max(end, headers.size_of_headers), headers.section_alignment)
    extended = bytearray(image) + bytes(-len(image) % headers.file_alignment)
    raw_offset, raw_size = len(extended), _aligned(len(data), headers.file_alignment)
    extended += data.ljust(raw_size, b"\0")
    _SECTION.pack_into(
        extended,
        entry,
        name.encode("ascii"),
        *(len(data), address, raw_size, raw_offset),
        *(0, 0, 0, 0, _READABLE_DATA),
    )
    struct.pack_into("<H", extended, headers.coff + 2, len(headers.sections) + 1)
    optional = headers.optional
    (initialised,) = struct.unpack_from("<I", image, optional + _SIZE_OF_INITIALIZED_DATA)
    struct.pack_into("<I", extended, optional + _SIZE_OF_INITIALIZED_DATA, initialised + raw_size)
    image_end = _aligned(address + len(data), headers.section_alignment)
    struct.pack_into("<I", extended, optional + _SIZE_OF_IMAGE, image_end)
    return bytes(extended)


def without_symbols(image: bytes) -> bytes:
    """`image` without what lies behind its last section, such as a linker's table of symbols.

    Loaders read none of it, and not every firmware measures such a tail.
    """
    headers = parse_pe(image)
    end = max((one.raw_offset + one.raw_size for one in headers.sections), default=0)
    cut = bytearray(image[: max(end, headers.size_of_headers)])
    struct.pack_into("<II", cut, headers.coff + _POINTER_TO_SYMBOLS, 0, 0)
    return bytes(cut)


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the executable {why}", code="image.pe")
