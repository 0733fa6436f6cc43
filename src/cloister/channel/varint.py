"""Variable-length integers (RFC 9000 section 16), as Binary HTTP and chunked OHTTP use them.

The two top bits of the first byte give the size: 1, 2, 4 or 8 bytes, big-endian; the value is
below 2**62. Any size may carry any value that fits: the formats above do not ask for the
shortest.
"""

from __future__ import annotations

_LIMIT_1 = 1 << 6
_LIMIT_2 = 1 << 14
_LIMIT_4 = 1 << 30
_LIMIT_8 = 1 << 62


def encode_varint(value: int) -> bytes:
    """Encode on the fewest bytes. Raises RuntimeError outside 0 .. 2**62 - 1."""
    if value < 0:
        raise RuntimeError("a variable-length integer is not negative")
    if value < _LIMIT_1:
        return value.to_bytes(1, "big")
    if value < _LIMIT_2:
        return (value | 0x4000).to_bytes(2, "big")
    if value < _LIMIT_4:
        return (value | 0x8000_0000).to_bytes(4, "big")
    if value < _LIMIT_8:
        return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")
    raise RuntimeError("a variable-length integer is below 2**62")


def varint_size(first: int) -> int:
    """Return the size in bytes that the first byte announces."""
    return 1 << (first >> 6)


def decode_varint(data: bytes | bytearray | memoryview) -> int:
    """Decode bytes that hold exactly one integer, of the size its first byte announces."""
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)
