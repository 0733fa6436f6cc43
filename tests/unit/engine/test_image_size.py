"""Sizes of images, read from what may be anything."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engine import image_size as images
from cloister.engine.image_size import (
    MAX_CHUNKS,
    MAX_SCANS,
    MAX_SEGMENTS,
    TooManyPixelsError,
)
from support.pictures import chunk, gif_head, jpeg_head, jpeg_of_scans, png

MOST = 1 << 32


def image_size(data: bytes, *, most: int = MOST) -> tuple[int, int]:
    return images.image_size(data, most=most)


COMMENT = b"\xff\xfe" + struct.pack(">H", 6) + b"\xff\xc0\x01\x02"


@pytest.mark.parametrize(
    "data",
    [
        png(300, 70),
        gif_head(300, 70),
        jpeg_head(300, 70),
        jpeg_head(300, 70, frame=0xC1),
        jpeg_head(300, 70, frame=0xC2),
        jpeg_head(300, 70, before=COMMENT),  # what looks like a frame inside a comment is none
        jpeg_head(300, 70, before=b"\xff\xff\xff"),
    ],
)
def test_a_size_is_where_the_format_says(data: bytes) -> None:
    assert image_size(data) == (300, 70)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        png(300, 70)[:20],
        b"\x89PNG\r\n\x1a\n" + png(300, 70)[33:],
        png(300, 70)[:-12],
        png(300, 70)[:-20],
        png(300, 70).replace(b"IDATx", b"IDATy"),
        png(300, 70)[:24] + b"\x08\x07" + png(300, 70)[26:],
        png(300, 70)[:33] + chunk(b"tEXt", b"") * MAX_CHUNKS + png(300, 70)[33:],
        jpeg_head(300, 70, before=(b"\xff\xfe\x00\x02") * MAX_SEGMENTS),
        jpeg_head(300, 70, before=b"\xff" * MAX_SEGMENTS),
        png(300, 70).replace(b"IHDR", b"CgBI"),
        gif_head(300, 70)[:8],
        gif_head(0, 70),
        jpeg_head(300, 0),
        jpeg_head(300, 70)[:24],
        jpeg_head(300, 70, frame=0xC3),
        jpeg_head(300, 70, before=b"\x00"),
        jpeg_head(300, 70, before=b"\xff\xd9"),
        jpeg_head(300, 70, before=b"\xff\xfe\xff\xff"),
        b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(20),
        b"BM" + bytes(60),
        b"8BPS" + bytes(60),
        b"P6 300 70 255 ",
        b"ID3" + bytes(60),
    ],
)
def test_what_has_no_size_that_is_known_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        image_size(data)


def test_a_png_that_inflates_to_more_than_its_pixels_is_refused() -> None:
    def holding(rows: bytes, *, pieces: int = 1) -> bytes:
        packed = zlib.compress(rows)
        size = -(-len(packed) // pieces)
        parts = [packed[start : start + size] for start in range(0, len(packed), size)]
        head, end = png(10, 10)[:33], chunk(b"IEND", b"")
        return head + b"".join(chunk(b"IDAT", part) for part in parts) + end

    exact = bytes(10 * 31)
    for pieces in (1, 5):
        assert image_size(holding(exact, pieces=pieces)) == (10, 10)
        with pytest.raises(ValueError, match="more than its pixels"):
            image_size(holding(bytes(1 << 26), pieces=pieces))


@pytest.mark.parametrize("data", [png(300, 70), gif_head(300, 70), jpeg_head(300, 70)])
def test_nothing_but_the_head_is_read_of_an_image_that_is_too_large(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert image_size(data, most=300 * 70) == (300, 70)

    def inflate() -> None:
        pytest.fail("it was inflated")

    monkeypatch.setattr(zlib, "decompressobj", inflate)
    with pytest.raises(TooManyPixelsError):
        image_size(data, most=300 * 70 - 1)


def test_a_png_with_a_part_that_changes_how_it_is_read_is_refused() -> None:
    whole = png(10, 10)
    assert image_size(whole[:33] + chunk(b"cgBI", bytes(4)) + whole[33:]) == (10, 10)
    # After this one Apple's files have no zlib head: stb_image would inflate something else.
    with pytest.raises(ValueError, match="need not know"):
        image_size(whole[:33] + chunk(b"CgBI", bytes(4)) + whole[33:])


def test_a_jpeg_whose_every_few_bytes_cost_a_whole_image_is_refused() -> None:
    assert image_size(jpeg_of_scans(64, 64, scans=MAX_SCANS)) == (64, 64)
    with pytest.raises(ValueError, match="too many scans"):
        image_size(jpeg_of_scans(64, 64, scans=MAX_SCANS + 1))


@given(st.sampled_from((b"", b"\xff\xd8", b"GIF89a", png(1, 1)[:16])), st.binary(max_size=80))
def test_any_bytes_have_a_size_or_none(head: bytes, rest: bytes) -> None:
    try:
        width, height = image_size(head + rest)
    except ValueError:
        return
    assert width > 0
    assert height > 0
