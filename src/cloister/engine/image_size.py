"""How large an image is when it is decoded: PNG, JPEG and GIF.

The engine's decoder (stb_image) takes memory for whatever size a head claims, inflates all that a
PNG holds, however much that is, and computes a whole image for each scan of a JPEG, however short
that is. So the worker reads the head first, counts what a PNG inflates to, and bounds scans. Only
what that decoder would read in the same way is accepted: nothing stands before, between or instead
of the parts that the formats prescribe.

PNG: W3C PNG specification, 5 (chunks), 5.4 (their names), 11.2.1 (IHDR comes first), 10.1 (zlib).
GIF: GIF89a, section 18. JPEG: ITU-T T.81, B.1.1 and B.2.2: segments up to the frame header.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

MAX_CHUNKS: Final = 16_384
"""Of a PNG; its encoders write 8 KiB or more into each."""
MAX_SEGMENTS: Final = 1_024
"""In front of a JPEG's frame: a profile of colours takes some tens."""

MAX_SCANS: Final = 64
"""Of a JPEG, previews in its profile included: progressive ones have about ten, each costs 0.3 s
of the decoder's time at the most pixels that are accepted."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_IHDR: Final = b"\x00\x00\x00\x0dIHDR"
_CRITICAL: Final = frozenset((b"IHDR", b"PLTE", b"IDAT"))
"""Chunks that every decoder has to know; others of capital names could change how it inflates
(Apple's ``CgBI`` does)."""
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a PNG's colour types."""
_GIF: Final = (b"GIF87a", b"GIF89a")
_JPEG: Final = b"\xff\xd8"
_SCAN: Final = b"\xff\xda"
_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))
"""Frame headers of baseline, extended and progressive JPEG; the decoder knows no others."""
_TABLES: Final = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Segments that may stand before the frame: tables, restart intervals, comments, APPn."""
_BLOCK: Final = 1 << 20


class TooManyPixelsError(ValueError):
    """Its head says that it is larger than what is asked for; nothing else of it was read."""


def image_size(data: bytes, *, most: int) -> tuple[int, int]:
    """Width and height in pixels; ValueError if it is no PNG, JPEG or GIF, or has none.

    TooManyPixelsError for more than `most` of them. Takes time for a PNG, as inflating it does,
    and in proportion to `most`; what is inflated is dropped.
    """
    width, height = _head(data)
    if not width or not height:
        raise ValueError("it has no pixels")
    if width * height > most:
        raise TooManyPixelsError("it has too many pixels")
    if data.startswith(_PNG):
        _check_inflated(data)
    return width, height


def _head(data: bytes) -> tuple[int, ...]:
    if data.startswith(_PNG):
        return _png(data)[:2]
    if data.startswith(_GIF):
        return _unpack("<HH", data, len(_GIF[0]))
    if data.startswith(_JPEG):
        return _jpeg(data)
    raise ValueError("it is no PNG, JPEG or GIF")


def _png(data: bytes) -> tuple[int, int, int]:
    """Width, height, and the bits of a pixel."""
    if not data.startswith(_IHDR, len(_PNG)):
        raise ValueError("its head does not come first")
    width, height, depth, colour = _unpack(">IIBB", data, len(_PNG) + len(_IHDR))
    if colour not in _CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise ValueError("it has no colours that are known")
    return width, height, _CHANNELS[colour] * depth


def _check_inflated(data: bytes) -> None:
    width, height, bits = _png(data)
    row = (width * bits + 7) // 8 + 1
    # Twice, because the passes of an interlaced image have more and shorter rows.
    left = 2 * row * height + 64
    inflater = zlib.decompressobj()
    try:
        for piece in _image_data(data):
            rest = piece
            while rest and not inflater.eof:
                left -= len(inflater.decompress(rest, _BLOCK))
                if left < 0:
                    raise ValueError("it holds more than its pixels")
                rest = inflater.unconsumed_tail
    except zlib.error:
        raise ValueError("it does not inflate") from None


def _image_data(data: bytes) -> Iterator[bytes]:
    """The contents of a PNG's IDAT chunks, up to its end."""
    place = len(_PNG)
    for _ in range(MAX_CHUNKS):
        (length,) = _unpack(">I", data, place)
        kind = data[place + 4 : place + 8]
        if kind == b"IEND":
            return
        if place + 12 + length > len(data):
            raise ValueError("it ends too early")
        if kind[:1].isupper() and kind not in _CRITICAL:
            raise ValueError("it has a part that decoders need not know")
        if kind == b"IDAT":
            yield data[place + 8 : place + 8 + length]
        place += 12 + length
    raise ValueError("it has too many chunks")


def _jpeg(data: bytes) -> tuple[int, int]:
    # Between scans, a decoder may look for the next one anywhere: so wherever it stands, it counts.
    if data.count(_SCAN) > MAX_SCANS:
        raise ValueError("it has too many scans")
    place = len(_JPEG)
    for _ in range(MAX_SEGMENTS):
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
    raise ValueError("it has too many segments")


def _unpack(layout: str, data: bytes, place: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, place)
    except struct.error:
        raise ValueError("it ends too early") from None
