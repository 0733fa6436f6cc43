"""Digests of programs: what they cover, what they leave out, what is refused."""

from __future__ import annotations

import hashlib
import struct

import pytest

from cloister.errors import MalformedError
from cloister.image import authenticode
from cloister.image.authenticode import MAX_SECTIONS, parse_pe
from support.boot_parts import pe_file

SECTIONS = [(".text", b"code" * 100), (".data", b"data")]
PLAIN = pe_file(SECTIONS)


def by_hand(data: bytes, *, certificates: int = 0) -> bytes:
    """Authenticode of a file whose optional header begins at 88 (as `pe_file` makes them)."""
    checksum, directory = 88 + 64, 88 + 112 + 4 * 8
    kept = data[:checksum] + data[checksum + 4 : directory] + data[directory + 8 :]
    return hashlib.sha256(kept[: len(kept) - certificates]).digest()


def test_the_digest_covers_everything_but_three_places() -> None:
    assert parse_pe(PLAIN).digest() == by_hand(PLAIN)
    assert parse_pe(PLAIN).digest("sha384") != parse_pe(PLAIN).digest()


def test_signing_and_checksums_do_not_change_it() -> None:
    digest = parse_pe(PLAIN).digest()
    assert parse_pe(pe_file(SECTIONS, checksum=77)).digest() == digest
    signed = pe_file(SECTIONS, certificates=b"a signature beside it".ljust(24))
    assert parse_pe(signed).digest() == digest
    assert parse_pe(signed).certificates_at == len(signed) - 24


def test_every_other_byte_does() -> None:
    digest = parse_pe(PLAIN).digest()
    changed = 0
    for at in range(len(PLAIN)):
        if 152 <= at < 156 or 232 <= at < 240:
            continue  # checksum; where signatures are
        flipped = PLAIN[:at] + bytes([PLAIN[at] ^ 1]) + PLAIN[at + 1 :]
        try:
            assert parse_pe(flipped).digest() != digest, at
        except MalformedError:
            continue
        changed += 1
    assert changed > 1000


def test_bytes_after_the_sections_are_covered() -> None:
    more = pe_file(SECTIONS, trailing=b"symbols")
    assert parse_pe(more).digest() == by_hand(more)
    assert parse_pe(more).digest() != parse_pe(PLAIN).digest()


def test_the_order_in_the_header_does_not_matter() -> None:
    """Sections are hashed as they lie in the file."""
    table = 88 + 112 + 128
    one, two = PLAIN[table : table + 40], PLAIN[table + 40 : table + 80]
    swapped = parse_pe(PLAIN[:table] + two + one + PLAIN[table + 80 :])
    assert [section.name for section in swapped.sections] == [".data", ".text"]
    assert swapped.content(".data") == b"data"


def test_content_is_without_padding_and_empty_sections_have_none() -> None:
    found = parse_pe(pe_file([*SECTIONS, (".bss", b"")]))
    assert found.content(".text") == b"code" * 100
    assert found.content(".bss") == b""
    assert found.content(".none") is None


def with_field(at: int, layout: str, *values: int) -> bytes:
    data = bytearray(PLAIN)
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


def with_bytes(at: int, new: bytes, data: bytes = PLAIN) -> bytes:
    return data[:at] + new + data[at + len(new) :]


TABLE, CERTIFICATES = 88 + 112 + 128, 88 + 112 + 32

REFUSED = {
    "another beginning": with_bytes(0, b"ZM"),
    "no directory for signatures": pe_file([("", b"x")], directories=4),
    "name beyond ASCII": with_bytes(TABLE, b"\xff"),
    "name with a zero inside": with_bytes(TABLE + 2, b"\0"),
    "signature of a size and no place": with_field(CERTIFICATES, "<II", 0, 8),
    "signature at an address that is not aligned": with_field(
        CERTIFICATES, "<II", len(PLAIN) + 1, 8
    )
    + bytes(9),
    "nothing": b"",
    "no program": b"\x7fELF" + bytes(1000),
    "header far away": with_field(60, "<I", 1 << 20),
    "header beyond the end": with_field(60, "<I", 60_000),
    "no PE signature": with_field(64, "<I", 0),
    "32-bit processor": pe_file(SECTIONS, machine=0x14C),
    "32-bit kind": pe_file(SECTIONS, magic=0x10B),
    "no section": pe_file([]),
    "too many sections": with_field(70, "<H", MAX_SECTIONS + 1),
    "no place for signatures": pe_file(SECTIONS, directories=4),
    "too many directories": pe_file(SECTIONS, directories=17),
    "optional header of another size": with_field(84, "<H", 200),
    "headers beyond the end": with_field(88 + 60, "<I", 1 << 24),
    "sections outside the headers": with_field(88 + 60, "<I", 88 + 112 + 128),
    "gap": pe_file(SECTIONS, gap=bytes(512)),
    "overlap": with_field(88 + 112 + 128 + 40 + 20, "<I", 512),
    "cut off": PLAIN[:-1],
    "two sections of one name": pe_file([(".text", b"a"), (".text", b"b")]),
    "signature not at the end": pe_file(SECTIONS, certificates=bytes(8)) + b"more",
    "signature over a section": with_field(88 + 112 + 32, "<II", 512, len(PLAIN) - 512),
    "signature of no size": with_field(88 + 112 + 32, "<II", len(PLAIN), 0),
    "signature at an odd place": pe_file(SECTIONS, trailing=b"1", certificates=bytes(8))[:-1],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_program_of_ours(case: str) -> None:
    assert parse_pe(PLAIN).sections
    with pytest.raises(MalformedError) as caught:
        parse_pe(REFUSED[case])
    assert caught.value.code == "image.pe"


def test_an_aligned_signature_is_the_twin_of_those_that_are_not() -> None:
    signed = with_field(CERTIFICATES, "<II", len(PLAIN), 8) + bytes(8)
    assert parse_pe(signed).certificates_at == len(PLAIN)


def test_arm64() -> None:
    assert parse_pe(pe_file(SECTIONS, machine=0xAA64)).sections


def test_as_many_sections_as_windows_takes() -> None:
    many = [(f".{number}", b"x") for number in range(MAX_SECTIONS + 1)]
    assert len(parse_pe(pe_file(many[:-1])).sections) == MAX_SECTIONS
    with pytest.raises(MalformedError, match="97 sections"):
        parse_pe(pe_file(many))


def test_a_long_file_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticode, "MAX_PE_BYTES", len(PLAIN))
    assert parse_pe(PLAIN).sections
    with pytest.raises(MalformedError, match="at most"):
        parse_pe(PLAIN + b"x")


def test_how_far_away_the_header_may_be() -> None:
    def moved(to: int) -> bytes:
        """The same program with its header at `to`, and all else behind it."""
        by = -(-(to - 64) // 512) * 512
        data = bytearray(PLAIN[:64].ljust(to, b"\0") + PLAIN[64:512])
        data = data.ljust(512 + by, b"\0") + PLAIN[512:]
        struct.pack_into("<I", data, 60, to)
        optional = to + 24
        struct.pack_into("<I", data, optional + 60, 512 + by)
        for section in range(2):
            at = optional + 112 + 128 + 40 * section + 20
            (offset,) = struct.unpack_from("<I", data, at)
            struct.pack_into("<I", data, at, offset + by)
        return bytes(data)

    assert parse_pe(moved(64 * 1024)).content(".data") == b"data"
    with pytest.raises(MalformedError, match="too far away"):
        parse_pe(moved(64 * 1024 + 8))


def test_no_section_begins_within_the_headers() -> None:
    """The bytes of the table would be measured twice, or as something else than they are."""

    def beginning(at: int) -> bytes:
        data = bytearray(PLAIN)
        struct.pack_into("<I", data, 88 + 60, at)
        struct.pack_into("<II", data, TABLE + 16, 1024 - at, at)
        return bytes(data)

    assert len(parse_pe(PLAIN).data) == 1536
    assert parse_pe(beginning(TABLE + 80)).headers_size == TABLE + 80
    with pytest.raises(MalformedError, match="headers that do not fit"):
        parse_pe(beginning(TABLE + 79))
