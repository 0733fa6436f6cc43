"""A bounded reader for BER, as much of it as CMS from AWS KMS uses. No I/O.

Source: ITU-T X.690 (02/2021), section 8.1. Identifiers of one octet, lengths in the shortest
definite form or indefinite (8.1.3.6), which takes end-of-contents octets at its end. Refused:
identifiers of more octets, lengths that are longer than they need to be, indefinite lengths of
primitive encodings, anything after the outermost element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 12
"""An envelope of KMS has 7."""
MAX_ELEMENTS: Final = 512
"""In all. An envelope has some 30, and more where its content comes in pieces."""

INTEGER: Final = 0x02
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31
CONSTRUCTED: Final = 0x20

_INDEFINITE: Final = 0x80
_END: Final = b"\x00\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element: identifier octet and content, or the elements inside."""

    tag: int
    content: bytes
    """Of a primitive encoding; empty otherwise."""
    parts: tuple[Element, ...]
    """Of a constructed encoding."""

    @property
    def constructed(self) -> bool:
        """Whether elements are inside."""
        return bool(self.tag & CONSTRUCTED)


def parse_ber(data: bytes) -> Element:
    """Read one element that is all of `data`. Raises MalformedError, and nothing else."""
    if len(data) > MAX_BYTES:
        raise MalformedError(f"the BER encoding has more than {MAX_BYTES} bytes")
    reader = _Reader(data)
    element, end = reader.element(0, len(data), depth=0)
    if end != len(data):
        raise MalformedError("something follows the BER encoding")
    return element


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0

    def element(self, start: int, limit: int, *, depth: int) -> tuple[Element, int]:
        """The element at `start`, which has to end by `limit`, and where it ends."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise MalformedError("the BER encoding is nested too deeply, or has too many parts")
        tag = self._octet(start, limit)
        if tag & 0x1F == 0x1F or tag == 0:
            raise MalformedError("the BER encoding has an identifier that is not expected")
        size, start = self._length(start + 1, limit)
        if size is None:
            if not tag & CONSTRUCTED:
                raise MalformedError("a primitive BER element has no length")
            parts, end = self._until_end(start, limit, depth=depth)
            return Element(tag=tag, content=b"", parts=parts), end
        end = start + size
        if end > limit:
            raise MalformedError("the BER encoding ends too early")
        if not tag & CONSTRUCTED:
            return Element(tag=tag, content=self._data[start:end], parts=()), end
        parts_found: list[Element] = []
        while start < end:
            part, start = self.element(start, end, depth=depth + 1)
            parts_found.append(part)
        return Element(tag=tag, content=b"", parts=tuple(parts_found)), end

    def _until_end(self, start: int, limit: int, *, depth: int) -> tuple[tuple[Element, ...], int]:
        parts: list[Element] = []
        while self._data[start : min(start + 2, limit)] != _END:
            part, start = self.element(start, limit, depth=depth + 1)
            parts.append(part)
        return tuple(parts), start + 2

    def _length(self, start: int, limit: int) -> tuple[int | None, int]:
        first = self._octet(start, limit)
        if first == _INDEFINITE:
            return None, start + 1
        if first < _INDEFINITE:
            return first, start + 1
        octets = first & 0x7F
        if octets > 3 or start + 1 + octets > limit:
            raise MalformedError("the BER encoding has a length that is not expected")
        size = int.from_bytes(self._data[start + 1 : start + 1 + octets], "big")
        if size < 0x80 or size >> (8 * (octets - 1)) == 0:
            raise MalformedError("the BER encoding has a length in more bytes than it needs")
        return size, start + 1 + octets

    def _octet(self, position: int, limit: int) -> int:
        if position >= limit:
            raise MalformedError("the BER encoding ends too early")
        return self._data[position]
