"""How large an image is, from its head alone: PNG, JPEG and GIF.

The engine's decoder takes memory for whatever size a head claims, so the worker reads the head
first. Only what that decoder (stb_image) would read in the same way is accepted: nothing stands
before, between or instead of the parts that the formats prescribe.

PNG: W3C PNG specification, 11.2.1 (IHDR comes first). GIF: GIF89a, section 18. JPEG: ITU-T T.81,
B.1.1 and B.2.2: segments up to the frame header.
"""

from __future__ import annotations

import struct
from typing import Final

_PNG: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_GIF: Final = (b"GIF87a", b"GIF89a")
_JPEG: Final = b"\xff\xd8"
_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))
"""Frame headers of baseline, extended and progressive JPEG; the decoder knows no others."""
_TABLES: Final = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Segments that may stand before the frame: tables, restart intervals, comments, APPn."""


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels; ValueError if it is no PNG, JPEG or GIF, or has none."""
    if data.startswith(_PNG):
        size = _unpack(">II", data, len(_PNG))
    elif data.startswith(_GIF):
        size = _unpack("<HH", data, len(_GIF[0]))
    elif data.startswith(_JPEG):
        size = _jpeg(data)
    else:
        raise ValueError("it is no PNG, JPEG or GIF")
    width, height = size
    if not width or not height:
        raise ValueError("it has no pixels")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    place = len(_JPEG)
    while True:
        mark, kind = _unpack(">BB", data, place)
        if mark != 0xFF:
            raise ValueError("something stands between its segments")
        if kind == 0xFF:  # T.81 B.1.1.2: any number of these may fill the space before a marker
            place += 1
        elif kind in _FRAMES:
            _, _, height, width = _unpack(">HBHH", data, place + 2)
            return width, height
        elif kind in _TABLES:
            (length,) = _unpack(">H", data, place + 2)
            place += 2 + max(2, length)
        else:
            raise ValueError("it has no frame that is known")


def _unpack(layout: str, data: bytes, place: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, place)
    except struct.error:
        raise ValueError("it ends too early") from None
