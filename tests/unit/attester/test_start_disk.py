"""The start disk: what it says, and that nothing else is read out of it."""

from __future__ import annotations

import hashlib

import pytest

from cloister.attester.guest_port import MAX_MESSAGE_BYTES, encoded
from cloister.attester.start_disk import (
    BLOCK,
    DISK_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_MEMBER_BYTES,
    Start,
    parse_disk,
    parse_start,
)
from cloister.errors import ConfigurationError, MalformedError

START = Start(api_keys=b'{"version": 1}', manifest=b"bundle")
DATA = START.encode()
DOCUMENT = DATA[BLOCK:]


def with_document(document: bytes, *, size: int | None = None, digest: str | None = None) -> bytes:
    """A start disk with this document, written apart from the code under test."""
    said = len(document) if size is None else size
    line = f"cloister-start/1 {said} {digest or hashlib.sha256(document).hexdigest()}\n"
    return line.encode().ljust(BLOCK, b"\0") + document


@pytest.mark.parametrize("manifest", [None, b"", b"bundle", bytes(range(256))])
def test_what_was_written_is_read(manifest: bytes | None) -> None:
    start = Start(api_keys=b"table", manifest=manifest)
    assert parse_start(start.encode()) == start
    assert parse_disk(start.disk()) == start
    assert len(start.disk()) == DISK_BYTES
    assert start.disk() == Start(api_keys=b"table", manifest=manifest).disk()


def test_the_format_is_the_documented_one() -> None:
    assert with_document(DOCUMENT) == DATA
    assert DOCUMENT == b'{"api_keys":"eyJ2ZXJzaW9uIjogMX0=","manifest":"YnVuZGxl"}'


def test_the_largest_that_the_port_could_bring_fits() -> None:
    largest = Start(api_keys=bytes(MAX_MEMBER_BYTES), manifest=bytes(MAX_MEMBER_BYTES))
    assert parse_start(largest.encode()) == largest
    assert len(largest.encode()) <= BLOCK + MAX_DOCUMENT_BYTES < DISK_BYTES
    assert len(encoded(largest.api_keys)) < MAX_MESSAGE_BYTES
    for more in (
        Start(api_keys=bytes(MAX_MEMBER_BYTES + 1)),
        Start(api_keys=b"", manifest=bytes(MAX_MEMBER_BYTES + 1)),
    ):
        with pytest.raises(ConfigurationError) as caught:
            more.encode()
        assert caught.value.code == "guest.start_disk"


@pytest.mark.parametrize("end", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(DATA) - 1])
def test_cut_off(end: int) -> None:
    assert parse_start(DATA) == START
    refused(DATA[:end])


def test_bytes_behind_the_document() -> None:
    assert parse_start(DATA) == START
    refused(DATA + b"\0")
    refused(DATA + b"x")
    assert parse_disk(DATA + bytes(512)) == START
    for more in (b"x", bytes(512) + b"x"):
        with pytest.raises(MalformedError):
            parse_disk(DATA + more)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        DOCUMENT.replace(b'":"', b'": "', 1),
        DOCUMENT + b"\n",
        DOCUMENT[:-1] + b',"more":""}',
        DOCUMENT[:-1] + b',"manifest":"YnVuZGxl"}',
        b'{"manifest":"YnVuZGxl"}',
        b'{"manifest":"YnVuZGxl","api_keys":""}',
        b'{"api_keys":null}',
        b'{"api_keys":"","manifest":null}',
        b'{"api_keys":"e"}',
        b'{"api_keys":"eyJ="}',
        b'{"api_keys":"eyJ9\\n"}',
        b'{"api_keys":"' + b"A" * (MAX_MEMBER_BYTES // 3 * 4 + 4) + b'"}',
    ],
    ids=range(16),
)
def test_a_document_that_is_none(document: bytes) -> None:
    assert parse_start(with_document(DOCUMENT)) == START
    refused(with_document(document))


@pytest.mark.parametrize(
    "data",
    [
        with_document(DOCUMENT, digest="00" * 32),
        with_document(DOCUMENT, size=len(DOCUMENT) - 1),
        with_document(DOCUMENT, size=len(DOCUMENT) + 1),
        with_document(DOCUMENT, size=MAX_DOCUMENT_BYTES + 1),
        with_document(b" " * (MAX_DOCUMENT_BYTES + 1)),
        DATA.replace(b"start/1", b"start/2", 1),
        DATA.replace(b"start/1 ", b"start/1  ", 1),
        DATA.replace(b"start/1 ", b"start/1 0", 1),
        DATA.replace(b"start/1 ", b"start/1 +", 1),
        DATA.replace(b"\n\0", b"\nx", 1),
        DATA.replace(b"\n", b" \n", 1),
        b"\0" + DATA[:-1],
        DATA[: BLOCK - 1] + b"x" + DOCUMENT,
        DATA[:BLOCK].replace(hashlib.sha256(DOCUMENT).hexdigest().encode(), b"A" * 64) + DOCUMENT,
    ],
    ids=range(14),
)
def test_a_header_that_is_none(data: bytes) -> None:
    assert parse_start(DATA) == START
    refused(data)


def refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_start(data)
    assert caught.value.code == "guest.start_disk"
    assert "eyJ2" not in str(caught.value)


def test_a_table_of_keys_is_not_shown() -> None:
    assert "version" not in repr(START)
