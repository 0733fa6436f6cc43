"""Small pictures in the formats that the embedded engine reads."""

from __future__ import annotations

import base64
import struct
import zlib


def png(width: int, height: int, colour: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    """A whole PNG of one colour."""
    rows = b"".join(b"\0" + bytes(colour) * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def jpeg_head(width: int, height: int, *, frame: int = 0xC0, before: bytes = b"") -> bytes:
    """A JPEG as far as its frame header, with an APP0 segment and `before` in front of that."""
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    header = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + app0 + before + bytes((0xFF, frame)) + header


def jpeg_of_scans(width: int, height: int, *, scans: int) -> bytes:
    """A whole grey JPEG: every scan of it holds next to nothing, and says all of the image."""
    codes = bytes([1] + [0] * 16)  # one code, of one bit, for the symbol 0
    parts = (
        (0xDB, b"\0" + bytes([1] * 64)),
        (0xC0, struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"),
        (0xC4, b"\x00" + codes + b"\x10" + codes),
    )
    scan = _segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0") + b"\0"
    return b"\xff\xd8" + b"".join(_segment(*part) for part in parts) + scan * scans + b"\xff\xd9"


def _segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def gif_head(width: int, height: int) -> bytes:
    """A GIF as far as its screen descriptor."""
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
