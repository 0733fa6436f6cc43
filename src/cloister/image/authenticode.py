"""Authenticode digests of PE files: what firmware measures and checks of a program it starts.

Sources: Microsoft, "Windows Authenticode Portable Executable Signature Format" (2008), "Calculating
the PE Image Hash"; Microsoft, "PE Format", for the headers. All integers are little-endian.

The digest covers the file without the header's checksum, without the directory entry that says
where signatures lie, and without the signatures: signing a file does not change it. EDK2 counts
the bytes that it hashed and takes what is left from the end of the file, which is only the same
where sections follow each other without gaps. Bytes in a gap would be measured by one reading and
not by the other, so a file with gaps is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from cloister.errors import MalformedError

CODE: Final = "image.pe"

MAX_PE_BYTES: Final = 1 << 30
"""Longest file accepted. A kernel with its initrd has tens of megabytes."""
MAX_SECTIONS: Final = 96
"""As many as Windows' loader accepts."""

MACHINES: Final = frozenset({0x8664, 0xAA64})
"""x86-64 and arm64."""

_MZ: Final = b"MZ"
_NEW_HEADER: Final = 0x3C
_MAX_NEW_HEADER: Final = 64 * 1024
_COFF: Final = Struct("<4sHHIIIHH")
"""Signature, machine, sections, time, symbol table, symbols, optional header's size, flags."""
_PE32_PLUS: Final = 0x20B
_OPTIONAL_FIXED: Final = 112
_SIZE_OF_HEADERS: Final = 60
_CHECKSUM: Final = 64
_DIRECTORY_COUNT: Final = 108
_CERTIFICATES: Final = 4
"""Number of the directory that says where signatures lie."""
_DIRECTORY: Final = Struct("<II")
_SECTION: Final = Struct("<8sIIIIIIHHI")
_CERTIFICATE_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PeSection:
    """One section: its name, where it lies in the file, and how much of it is content."""

    name: str
    offset: int
    size: int
    """Bytes in the file, padded to the file's alignment; zero for one without content."""
    virtual_size: int
    """Bytes of content; what follows up to `size` is padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeFile:
    """A decoded PE32+ file. Nothing is authenticated."""

    data: bytes
    headers_size: int
    checksum_at: int
    directory_at: int
    """Where the directory entry of signatures lies."""
    sections: tuple[PeSection, ...]
    """As the header lists them."""
    certificates_at: int
    """Where signatures begin; the end of the file where there are none."""

    def content(self, name: str) -> bytes | None:
        """The content of the section called `name` without its padding; ``None`` without one."""
        for section in self.sections:
            if section.name == name:
                size = min(section.virtual_size, section.size)
                return self.data[section.offset : section.offset + size]
        return None

    def digest(self, algorithm: str = "sha256") -> bytes:
        """The Authenticode digest with the hash called `algorithm` (`hashlib`'s name)."""
        digest = hashlib.new(algorithm)
        for start, end in (
            (0, self.checksum_at),
            (self.checksum_at + 4, self.directory_at),
            (self.directory_at + _DIRECTORY.size, self.certificates_at),
        ):
            digest.update(memoryview(self.data)[start:end])
        return digest.digest()


def parse_pe(data: bytes, *, what: str = "the PE file") -> PeFile:
    """Decode a PE32+ file for x86-64 or arm64 whose sections follow each other without gaps.

    Signatures, if there are any, have to be the end of the file.

    Raises MalformedError (code ``image.pe``), and nothing else.
    """
    return _Parser(data, what).parse()


class _Parser:
    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what

    def parse(self) -> PeFile:
        data = self._data
        if len(data) > MAX_PE_BYTES:
            raise self._fail(f"has {len(data)} bytes; at most {MAX_PE_BYTES} are accepted")
        if data[:2] != _MZ:
            raise self._fail("is no PE file")
        head = self._integer(_NEW_HEADER)
        if head > _MAX_NEW_HEADER:
            raise self._fail("has its header too far away")
        signature, machine, count, _, _, _, optional_size, _ = self._unpack(_COFF, head)
        if signature != b"PE\0\0" or machine not in MACHINES:
            raise self._fail("is no PE file for x86-64 or arm64")
        if not 1 <= count <= MAX_SECTIONS:
            raise self._fail(f"has {count} sections")
        optional = head + _COFF.size
        directory = self._optional_header(optional, optional_size)
        headers_size = self._integer(optional + _SIZE_OF_HEADERS)
        table = optional + optional_size
        if not table + count * _SECTION.size <= headers_size <= len(data):
            raise self._fail("has headers that do not fit where they should")
        sections = tuple(self._section(table + n * _SECTION.size) for n in range(count))
        end = self._contiguous(sections, headers_size)
        return PeFile(
            data=data,
            headers_size=headers_size,
            checksum_at=optional + _CHECKSUM,
            directory_at=directory,
            sections=sections,
            certificates_at=self._certificates(directory, end),
        )

    def _optional_header(self, at: int, size: int) -> int:
        """Check the optional header; where the directory entry of signatures lies."""
        if size < _OPTIONAL_FIXED or self._integer(at, 2) != _PE32_PLUS:
            raise self._fail("is not of the 64-bit kind (PE32+)")
        directories = self._integer(at + _DIRECTORY_COUNT)
        if not _CERTIFICATES < directories <= 16:
            raise self._fail("has no place for signatures in its header")
        if size != _OPTIONAL_FIXED + directories * _DIRECTORY.size:
            raise self._fail("has an optional header of a wrong size")
        return at + _OPTIONAL_FIXED + _CERTIFICATES * _DIRECTORY.size

    def _section(self, at: int) -> PeSection:
        raw_name, virtual_size, _, size, offset, *_ = self._unpack(_SECTION, at)
        name = raw_name.rstrip(b"\0")
        if not name.isascii() or b"\0" in name:
            raise self._fail("has a section whose name is no text")
        return PeSection(
            name=name.decode("ascii"), offset=offset, size=size, virtual_size=virtual_size
        )

    def _contiguous(self, sections: tuple[PeSection, ...], start: int) -> int:
        """Where the last section ends, if no byte lies between two of them."""
        names = [section.name for section in sections]
        if len(set(names)) != len(names):
            raise self._fail("has two sections of one name")
        end = start
        for section in sorted((s for s in sections if s.size), key=lambda s: s.offset):
            if section.offset != end:
                raise self._fail(
                    f"has sections that overlap or leave a gap before {section.name}: firmware"
                    " would not measure all of it"
                )
            end += section.size
        if end > len(self._data):
            raise self._fail("ends within a section")
        return end

    def _certificates(self, directory: int, end: int) -> int:
        at, size = self._unpack(_DIRECTORY, directory)
        if size == 0 and at == 0:
            return len(self._data)
        if at < end or at % _CERTIFICATE_ALIGNMENT or at + size != len(self._data) or not size:
            raise self._fail("has signatures somewhere else than at its end")
        return int(at)

    def _integer(self, at: int, size: int = 4) -> int:
        if at + size > len(self._data):
            raise self._fail("ends within its headers")
        return int.from_bytes(self._data[at : at + size], "little")

    def _unpack(self, layout: Struct, at: int) -> tuple[Any, ...]:
        if at + layout.size > len(self._data):
            raise self._fail("ends within its headers")
        return layout.unpack_from(self._data, at)

    def _fail(self, why: str) -> MalformedError:
        return MalformedError(f"{self._what} {why}", code=CODE)
