"""DER, as far as signatures of programs need it written (ITU-T X.690, definite lengths)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SEQUENCE: Final = 0x30
SET: Final = 0x31
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = b"\x05\x00"
OID: Final = 0x06


def value(tag: int, content: bytes) -> bytes:
    """One value of a tag of one byte."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*values: bytes) -> bytes:
    """A SEQUENCE of encoded values."""
    return value(SEQUENCE, b"".join(values))


def set_of(values: Iterable[bytes]) -> bytes:
    """A SET OF encoded values, in the order that X.690 section 11.6 wants."""
    return value(SET, b"".join(sorted(values)))


def context(number: int, *values: bytes, primitive: bool = False) -> bytes:
    """A context-specific tag around encoded values, or a primitive content."""
    return value((0x80 if primitive else 0xA0) | number, b"".join(values))


def integer(number: int) -> bytes:
    """A non-negative INTEGER."""
    return value(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *others = map(int, dotted.split("."))
    content = b"".join(_base128(number) for number in (40 * first + second, *others))
    return value(OID, content)


def _base128(number: int) -> bytes:
    encoded = bytes([number & 0x7F])
    while number := number >> 7:
        encoded = bytes([0x80 | number & 0x7F]) + encoded
    return encoded
