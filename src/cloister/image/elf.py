"""Reads what a program or library needs to run: its ``DT_NEEDED`` entries and its interpreter.

ELF-64, little-endian (System V ABI, generic ELF specification, "Dynamic Section"). A library that
nothing names here but that is opened at run time (``dlopen``) does not show.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import BuildError

_MAGIC: Final = b"\x7fELF\x02\x01"
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS = 1, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the loader looks for."""

    libraries: tuple[str, ...] = ()
    """Names such as ``libc.so.6``."""
    interpreter: str | None = None
    """The loader itself, by path."""


def is_elf(content: bytes) -> bool:
    """Whether it is a 64-bit little-endian ELF file."""
    return content.startswith(_MAGIC)


def needs_of(content: bytes, what: str) -> Needs:
    """Read them. Nothing for a static program. BuildError for a broken file (``image.elf``)."""
    try:
        return _needs(content)
    except (struct.error, ValueError, OverflowError, StopIteration):
        raise BuildError(f"{what} is a broken ELF file", code="image.elf") from None


def _needs(content: bytes) -> Needs:
    if not is_elf(content):
        raise ValueError
    fields = _HEADER.unpack_from(content)
    offset, size, count = fields[4], fields[8], fields[9]
    segments = [_SEGMENT.unpack_from(content, offset + size * i) for i in range(count)]
    loader = next((_text(content, s[2]) for s in segments if s[0] == _INTERPRETER), None)
    dynamic = next((s for s in segments if s[0] == _DYNAMIC_SEGMENT), None)
    if dynamic is None:
        return Needs(interpreter=loader)
    entries = [
        _DYNAMIC.unpack_from(content, at)
        for at in range(dynamic[2], dynamic[2] + dynamic[5], _DYNAMIC.size)
    ]
    address = next(value for tag, value in entries if tag == _STRINGS)
    strings = next(
        address - s[3] + s[2] for s in segments if s[0] == _LOAD and s[3] <= address < s[3] + s[5]
    )
    names = tuple(_text(content, strings + value) for tag, value in entries if tag == _NEEDED)
    return Needs(libraries=names, interpreter=loader)


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode("ascii")
