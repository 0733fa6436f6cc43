"""The footer of a disk: what is written is read again, and nothing else is a footer."""

from __future__ import annotations

import dataclasses

import pytest

from cloister.errors import BuildError, MalformedError
from cloister.image.footer import BLOCK, DiskFooter, parse_footer

FOOTER = DiskFooter(
    kind="model",
    fs="erofs",
    data_blocks=1536,
    hash_start=1536,
    root_hash="ab" * 32,
    salt="cd" * 32,
)


def block(line: bytes) -> bytes:
    return line.ljust(BLOCK, b"\0")


def test_written_and_read_again() -> None:
    assert FOOTER.line() == (
        b"cloister-disk/1 model erofs 1536 1536 " + b"ab" * 32 + b" " + b"cd" * 32 + b"\n"
    )
    assert len(FOOTER.encode()) == BLOCK
    assert parse_footer(FOOTER.encode()) == FOOTER
    assert FOOTER.argument() == f"erofs:1536:1536:{'ab' * 32}:{'cd' * 32}"


LINE = FOOTER.line()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(BLOCK),
        FOOTER.encode()[:-1],
        FOOTER.encode() + b"\0",
        block(LINE[:-1]),
        block(LINE + LINE),
        FOOTER.encode()[:-1] + b"x",
        block(LINE.replace(b"/1", b"/2")),
        block(LINE.replace(b"model", b"other")),
        block(LINE.replace(b"erofs", b"ext4")),
        block(LINE.replace(b"1536 1536", b"1536 1535")),
        block(LINE.replace(b"1536 1536", b"0 1536")),
        block(LINE.replace(b"1536 1536", b"01536 1536")),
        block(LINE.replace(b"1536 1536", b"+1536 1536")),
        block(LINE.replace(b"1536 1536", b"1536 01536")),
        block(LINE.replace(b"1536 1536", b"1536 +1536")),
        block(LINE.replace(b"1536 1536", b"1536  1536")),
        block(LINE.replace(b"1536 1536", b"1536 9999999999999")),
        block(LINE.replace(b"ab" * 32, b"AB" * 32)),
        block(LINE.replace(b"ab" * 32, b"ab" * 31)),
        block(LINE.replace(b"cd" * 32, b"cd" * 33)),
        block(LINE.replace(b"cd" * 32, "é".encode() + b"cd" * 31)),
        block(LINE.replace(b"\n", b" more\n")),
    ],
)
def test_nothing_else_is_one(data: bytes) -> None:
    assert parse_footer(FOOTER.encode()) == FOOTER
    with pytest.raises(MalformedError) as caught:
        parse_footer(data)
    assert caught.value.code == "image.footer"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "swap"},
        {"fs": "vfat"},
        {"data_blocks": 0},
        {"hash_start": 1},
        {"hash_start": (1 << 40) + 1},
        {"data_blocks": (1 << 40) + 1, "hash_start": (1 << 40) + 1},
        {"root_hash": ""},
        {"salt": "g" * 64},
    ],
)
def test_what_the_init_would_refuse_is_not_built(change: dict[str, object]) -> None:
    largest = dataclasses.replace(FOOTER, data_blocks=1 << 40, hash_start=1 << 40)
    assert parse_footer(largest.encode()) == largest
    with pytest.raises(BuildError) as caught:
        dataclasses.replace(FOOTER, **change)  # type: ignore[arg-type]
    assert caught.value.code == "image.disk"
