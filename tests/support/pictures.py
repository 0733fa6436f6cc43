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


def gif_head(width: int, height: int) -> bytes:
    """A GIF as far as its screen descriptor."""
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
