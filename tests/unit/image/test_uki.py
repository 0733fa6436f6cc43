"""Unified kernel images, and the executables they are made from."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from cloister.errors import BuildError, MalformedError
from cloister.image.pe import add_section, parse_pe
from cloister.image.uki import SECTIONS, UkiParts, build_uki, os_release

PARTS = UkiParts(
    kernel=b"kernel" * 1000,
    initrd=b"initrd" * 500,
    command_line="console=ttyS0 cloister.root=…".replace("…", "x"),
    os_release=os_release(version="1.2"),
)


def stub(*, sections: int = 1, room: int = 0x400) -> bytes:
    """The smallest executable with headers of `room` bytes."""
    pe, optional_size = 0x40, 240
    head = bytearray(room)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, pe)
    head[pe : pe + 4] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", head, pe + 4, 0x8664, sections, 0, 0, 0, optional_size, 0x22)
    optional = pe + 24
    struct.pack_into("<H", head, optional, 0x20B)
    struct.pack_into("<II", head, optional + 32, 0x1000, 0x200)
    struct.pack_into("<II", head, optional + 56, 0x2000, room)
    for number in range(sections):
        struct.pack_into(
            "<8sIIII",
            head,
            optional + optional_size + 40 * number,
            *(b".text", 5, 0x1000 * (number + 1), 0x200, room),
        )
    return bytes(head) + b"code!".ljust(0x200, b"\0")


def test_every_part_is_a_section_of_its_own() -> None:
    image = build_uki(stub(), PARTS)
    headers = parse_pe(image)
    assert tuple(section.name for section in headers.sections) == (".text", *SECTIONS)
    for name in SECTIONS:
        section = headers.section(name)
        assert section is not None
        assert section.content(image) == PARTS.section(name)
        assert section.raw_offset % headers.file_alignment == 0
        assert section.virtual_address % headers.section_alignment == 0
    ends = [one.virtual_address + one.virtual_size for one in headers.sections]
    starts = [one.virtual_address for one in headers.sections[1:]]
    assert all(end <= start for end, start in zip(ends, starts, strict=False))
    (size_of_image,) = struct.unpack_from("<I", image, headers.optional + 56)
    assert size_of_image >= ends[-1]
    assert size_of_image % headers.section_alignment == 0


def test_equal_parts_give_equal_bytes_and_others_do_not() -> None:
    image = build_uki(stub(), PARTS)
    assert image == build_uki(stub(), PARTS)
    for change in (
        {"kernel": PARTS.kernel + b"."},
        {"initrd": b""},
        {"command_line": PARTS.command_line + " "},
        {"os_release": os_release(version="1.2", debug=True)},
    ):
        assert build_uki(stub(), dataclasses.replace(PARTS, **change)) != image


def test_a_debug_image_has_another_name() -> None:
    assert os_release(version="1", debug=True).splitlines()[0] == "ID=cloister-debug"


def test_the_linkers_symbols_are_left_out() -> None:
    """A gap between sections would be measured by some firmware and not by other."""
    with_symbols = bytearray(stub() + b"symbols" * 99)
    struct.pack_into("<II", with_symbols, 0x40 + 4 + 8, len(stub()), 99)
    assert build_uki(bytes(with_symbols), PARTS) == build_uki(stub(), PARTS)


def test_an_image_is_no_stub() -> None:
    image = build_uki(stub(), PARTS)
    with pytest.raises(BuildError) as caught:
        build_uki(image, PARTS)
    assert caught.value.code == "image.stub"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ",
        stub()[:0x80],
        b"ZM" + stub()[2:],
        stub().replace(b"PE\0\0", b"NE\0\0"),
        stub().replace(b"\x0b\x02", b"\x0b\x01"),
        stub()[:-0x200],
        stub(sections=97, room=0x2000),
    ],
)
def test_what_is_no_executable(data: bytes) -> None:
    assert parse_pe(stub()).sections
    with pytest.raises(MalformedError):
        parse_pe(data)
    with pytest.raises(BuildError):
        build_uki(data, PARTS)


def test_headers_without_room_for_one_more() -> None:
    tight = stub(room=0x200)
    image = add_section(tight, ".a", b"x")
    with pytest.raises(MalformedError):
        for _ in range(4):
            image = add_section(image, ".b", b"x")


@pytest.mark.parametrize("at", [0x40 + 24 + 32, 0x40 + 24 + 36])
@pytest.mark.parametrize("alignment", [0, 0x300])
def test_alignments_are_powers_of_two(at: int, alignment: int) -> None:
    odd = bytearray(stub())
    struct.pack_into("<I", odd, at, 0x400)
    assert parse_pe(bytes(odd)).sections
    struct.pack_into("<I", odd, at, alignment)
    with pytest.raises(MalformedError, match="alignment"):
        parse_pe(bytes(odd))


def test_a_new_section_overwrites_nothing() -> None:
    """Its entry goes into room that the headers have, and that nobody uses."""
    table_end = 0x40 + 24 + 240 + 40
    room = table_end + 40
    image = add_section(stub(room=room), ".a", b"x")
    assert [one.name for one in parse_pe(image).sections] == [".text", ".a"]
    with pytest.raises(MalformedError, match="no room"):
        add_section(stub(room=room - 1)[: room - 1] + bytes(0x200), ".a", b"x")
    used = bytearray(stub(room=room))
    used[room - 1] = 1
    with pytest.raises(MalformedError, match="no room"):
        add_section(bytes(used), ".a", b"x")


def test_the_headers_count_what_was_added() -> None:
    image = add_section(stub(), ".a", b"x")
    (initialised,) = struct.unpack_from("<I", image, 0x40 + 24 + 8)
    assert initialised == 0x200
    (flags,) = struct.unpack_from("<I", image, parse_pe(image).section_table + 40 + 36)
    assert flags == 0x40000040  # initialised data that is readable
