"""Enclave images: written as the format says, read strictly, measured as AWS does."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.errors import BuildError, MalformedError, UnsupportedError
from cloister.image.eif import HEADER_BYTES, EifMeasurements, SectionType, read_eif
from cloister.image.eif_write import MAX_RAMDISKS, EifParts, write_eif

KERNEL, BOOT, APP, MORE = b"kernel" * 200_000, b"boot ramdisk", b"application", b"more of it"
CMDLINE = "reboot=k panic=30"
METADATA = b'{"ImageName":"demo","ImageVersion":"7"}'
Sections = Sequence[tuple[int, bytes]]

PLAIN: Sections = ((1, KERNEL), (2, CMDLINE.encode()), (5, METADATA), (3, BOOT), (3, APP))


def by_hand(sections: Sections, *, version: int = 4, flags: int = 0) -> bytes:
    """An image put together from the description alone."""
    offsets, body, at = [], b"", 548
    for kind, data in sections:
        offsets.append(at)
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
        at += 12 + len(data)
    sizes = [len(data) for _, data in sections]
    header = b".eif" + struct.pack(">HHQQHH", version, flags, 1 << 30, 2, 0, len(sections))
    header += struct.pack(">32Q", *offsets, *[0] * (32 - len(sections)))
    header += struct.pack(">32Q", *sizes, *[0] * (32 - len(sections))) + bytes(4)
    return header + struct.pack(">I", zlib.crc32(header + body)) + body


def register(*contents: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).digest()


def measured(data: bytes) -> EifMeasurements:
    return read_eif(io.BytesIO(data)).content.measurements(None)


def with_crc(data: bytes) -> bytes:
    """The same with a CRC that fits, so that another check has to notice."""
    crc = zlib.crc32(data[548:], zlib.crc32(data[:544]))
    return data[:544] + struct.pack(">I", crc) + data[548:]


@pytest.fixture
def parts(tmp_path: Path) -> Callable[..., EifParts]:
    def make(*ramdisks: bytes, **changes: object) -> EifParts:
        (tmp_path / "kernel").write_bytes(KERNEL)
        paths = []
        for number, content in enumerate(ramdisks or (BOOT, APP)):
            paths.append(tmp_path / f"ramdisk{number}")
            paths[-1].write_bytes(content)
        values: dict[str, object] = {
            "kernel": tmp_path / "kernel",
            "cmdline": CMDLINE,
            "ramdisks": tuple(paths),
            "name": "demo",
            "version": "7",
            "built_at": datetime(2026, 1, 2, tzinfo=UTC),
        }
        return EifParts(**{**values, **changes})  # type: ignore[arg-type]  # as the test says

    return make


def test_an_image_by_hand_is_read_and_measured() -> None:
    found = read_eif(io.BytesIO(by_hand((*PLAIN, (3, MORE)), flags=1)))
    assert found.arm64
    assert (found.memory, found.cpus) == (1 << 30, 2)
    assert found.cmdline == CMDLINE.encode()
    assert json.loads(found.metadata)["ImageVersion"] == "7"
    assert [one.type for one in found.sections][:3] == [
        SectionType.KERNEL,
        SectionType.CMDLINE,
        SectionType.METADATA,
    ]
    assert found.content.measurements(None) == EifMeasurements(
        pcr0=register(KERNEL, CMDLINE.encode(), BOOT, APP, MORE),
        pcr1=register(KERNEL, CMDLINE.encode(), BOOT),
        pcr2=register(APP, MORE),
        pcr8=None,
    )
    assert found.content.measurements(b"der").pcr8 == register(b"der")


def test_what_is_written_is_what_the_description_says(
    parts: Callable[..., EifParts], tmp_path: Path
) -> None:
    made = parts()
    written = write_eif(made, tmp_path / "image.eif")
    expected = ((1, KERNEL), (2, CMDLINE.encode()), (5, made.metadata()), (3, BOOT), (3, APP))
    assert (tmp_path / "image.eif").read_bytes() == by_hand(expected)
    assert written == read_eif(io.BytesIO(by_hand(expected)))
    offset = written.sections[0].offset
    assert (tmp_path / "image.eif").read_bytes()[offset : offset + 6] == b"kernel"


def test_equal_parts_give_equal_bytes(parts: Callable[..., EifParts], tmp_path: Path) -> None:
    write_eif(parts(), tmp_path / "one.eif")
    write_eif(parts(), tmp_path / "other.eif")
    assert (tmp_path / "one.eif").read_bytes() == (tmp_path / "other.eif").read_bytes()


def test_metadata_has_the_members_that_nitro_cli_reads(parts: Callable[..., EifParts]) -> None:
    metadata = json.loads(parts(custom={"a": 1}).metadata())
    assert list(metadata) == [
        "ImageName",
        "ImageVersion",
        "BuildMetadata",
        "DockerInfo",
        "CustomMetadata",
    ]
    assert metadata["BuildMetadata"]["BuildTime"] == "2026-01-02T00:00:00+00:00"
    assert metadata["CustomMetadata"] == {"a": 1}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ((1, KERNEL + b"!"), ("pcr2",)),
        ((2, b"reboot=k panic=31"), ("pcr2",)),
        ((5, b"{}"), ("pcr0", "pcr1", "pcr2")),
    ],
)
def test_what_moves_which_register(changed: tuple[int, bytes], same: tuple[str, ...]) -> None:
    sections = [changed if one[0] == changed[0] else one for one in PLAIN]
    before, after = measured(by_hand(PLAIN)), measured(by_hand(sections))
    unchanged = {
        name for name in ("pcr0", "pcr1", "pcr2") if getattr(before, name) == getattr(after, name)
    }
    assert unchanged == set(same)


def test_registers_do_not_fix_where_the_command_line_begins() -> None:
    """Why the module says what it says: a known weakness of the format, not of this code."""
    shorter = [
        (1, KERNEL + b"reboot=k "),
        (2, b"panic=30"),
        *PLAIN[2:],
    ]
    assert measured(by_hand(shorter)) == measured(by_hand(PLAIN))


ALTERATIONS: dict[str, Callable[[bytes], bytes]] = {
    "other magic": lambda data: with_crc(b".elf" + data[4:]),
    "unknown flag": lambda data: with_crc(data[:7] + b"\x02" + data[8:]),
    "reserved bits": lambda data: with_crc(data[:25] + b"\x01" + data[26:]),
    "unused field": lambda data: with_crc(data[:543] + b"\x01" + data[544:]),
    "33 sections": lambda data: with_crc(data[:26] + b"\x00\x21" + data[28:]),
    "one section fewer": lambda data: with_crc(data[:27] + b"\x04" + data[28:]),
    "another offset": lambda data: with_crc(data[:35] + bytes([data[35] ^ 1]) + data[36:]),
    "another size": lambda data: with_crc(data[:291] + bytes([data[291] ^ 1]) + data[292:]),
    "section of another size": lambda data: with_crc(data[:559] + b"\x01" + data[560:]),
    "section with flags": lambda data: with_crc(data[:551] + b"\x01" + data[552:]),
    "unknown section": lambda data: with_crc(data[:549] + b"\x06" + data[550:]),
    "slot beyond the count": lambda data: with_crc(data[:75] + b"\x01" + data[76:]),
    "size beyond the count": lambda data: with_crc(data[:331] + b"\x01" + data[332:]),
    "trailing byte": lambda data: with_crc(data + b"\0"),
    "trailing byte beside the CRC": lambda data: data + b"\0",
    "a byte short": lambda data: data[:-1],
    "half a header": lambda data: data[:300],
    "empty": lambda data: b"",
    "flipped data": lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:],
    "flipped crc": lambda data: data[:547] + bytes([data[547] ^ 1]) + data[548:],
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_anything_else_is_malformed(name: str) -> None:
    data = by_hand(PLAIN)
    read_eif(io.BytesIO(data))
    with pytest.raises(MalformedError):
        read_eif(io.BytesIO(ALTERATIONS[name](data)))


def test_no_more_sections_than_slots() -> None:
    """The count of a full table is read as it is: 33 would name a slot that is no slot."""
    full = by_hand((*PLAIN, *[(3, MORE)] * 27))
    assert len(read_eif(io.BytesIO(full)).sections) == 32
    with pytest.raises(MalformedError, match="more sections"):
        read_eif(io.BytesIO(with_crc(full[:27] + b"\x21" + full[28:])))


def test_a_signature_moves_no_register_but_its_own() -> None:
    assert measured(by_hand((*PLAIN, (4, b"a signature")))) == measured(by_hand(PLAIN))


ORDERS: dict[str, Sections] = {
    "ramdisk before the command line": (PLAIN[0], PLAIN[3], PLAIN[1], PLAIN[2], PLAIN[4]),
    "no kernel": PLAIN[1:],
    "two kernels": (PLAIN[0], *PLAIN),
    "no metadata": (*PLAIN[:2], *PLAIN[3:]),
    "no ramdisk": PLAIN[:3],
    "signature first": ((4, b"\x80"), *PLAIN),
    "two signatures": (*PLAIN, (4, b"\x80"), (4, b"\x80")),
    "none": (),
    "a long command line": (PLAIN[0], (2, b"a" * 4097), *PLAIN[2:]),
    "long metadata": (*PLAIN[:2], (5, b" " * ((1 << 20) + 1)), *PLAIN[3:]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_sections_have_one_order_and_bounds(name: str) -> None:
    for whole in (PLAIN[:4], PLAIN, (*PLAIN, (4, b"\x80"))):
        read_eif(io.BytesIO(by_hand(whole)))
    with pytest.raises(MalformedError):
        read_eif(io.BytesIO(by_hand(ORDERS[name])))


def test_another_version_is_not_decided() -> None:
    with pytest.raises(UnsupportedError, match="version 3"):
        read_eif(io.BytesIO(by_hand(PLAIN, version=3)))


def test_a_declared_size_takes_no_memory_before_its_bytes_are_there() -> None:
    data = bytearray(by_hand(PLAIN[:1]))
    for at in (284, 552):  # in the header, in the section
        data[at : at + 8] = (1 << 60).to_bytes(8, "big")
    with pytest.raises(MalformedError, match="ends inside a section"):
        read_eif(io.BytesIO(bytes(data)))


@pytest.mark.parametrize(
    "changes",
    [
        {"ramdisks": ()},
        {"ramdisks": (Path("one"),) * (MAX_RAMDISKS + 1)},
        {"cmdline": "näh"},
        {"cmdline": "two\nlines"},
        {"cmdline": "a" * 4097},
    ],
)
def test_parts_that_make_no_image(
    parts: Callable[..., EifParts], changes: dict[str, object]
) -> None:
    parts()
    with pytest.raises(BuildError):
        parts(**changes)


def test_a_part_that_is_missing_leaves_the_old_image(
    parts: Callable[..., EifParts], tmp_path: Path
) -> None:
    target = tmp_path / "image.eif"
    write_eif(parts(), target)
    before = target.read_bytes()
    made = parts()
    made.ramdisks[1].unlink()
    with pytest.raises(BuildError, match="ramdisk1"):
        write_eif(made, target)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_part_that_changes_meanwhile_is_noticed(
    parts: Callable[..., EifParts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.image import eif_write

    made, measure = parts(), eif_write._measure

    def then_change(sections: object) -> object:
        digests = measure(sections)  # type: ignore[arg-type]  # passed on as it is
        made.ramdisks[1].write_bytes(APP[::-1])
        return digests

    monkeypatch.setattr(eif_write, "_measure", then_change)
    with pytest.raises(BuildError, match="changed"):
        write_eif(made, tmp_path / "image.eif")
    assert not (tmp_path / "image.eif").exists()


def test_the_header_is_as_long_as_aws_says() -> None:
    assert HEADER_BYTES == 548
