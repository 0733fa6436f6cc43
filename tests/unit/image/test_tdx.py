"""TDX: the measurement of firmware by hand, and runtime registers against those of real guests."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from cloister.errors import MalformedError
from cloister.evidence.ccel import parse_ccel
from cloister.evidence.dcap import parse_quote
from cloister.evidence.eventlog import EventType
from cloister.evidence.tdx import TdReport
from cloister.evidence.tpm import Alg
from cloister.image import tdx_launch
from cloister.image.boot_events import BootParts
from cloister.image.partition_table import measured_table
from cloister.image.rtmrs import boot_path_register, predicted_rtmrs, recorded_rtmr0
from cloister.image.stub import parse_uki
from cloister.image.tdx_launch import Order, mrtd, parse_tdvf
from support import boot_parts as made

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence" / "tdx"
with_evidence = pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason="REAL TDX GUESTS NOT COMPARED: ../shared/evidence is absent"
)

GOOD = made.tdvf(*made.TDX_SECTIONS)
BFV, _, HOB, _ = made.TDX_SECTIONS


def added(at: int) -> bytes:
    return (b"MEM.PAGE.ADD" + bytes(4) + struct.pack("<Q", at)).ljust(128, b"\0")


def extended(at: int, content: bytes) -> bytes:
    return (b"MR.EXTEND" + bytes(7) + struct.pack("<Q", at)).ljust(128, b"\0") + content


def by_hand(data: bytes, order: Order) -> bytes:
    stream = b""
    pages = [0xFFFFD000, 0xFFFFE000]
    chunks = {
        page: b"".join(
            extended(page + at, data[4096 + page - pages[0] + at :][:256])
            for at in range(0, 4096, 256)
        )
        for page in pages
    }
    if order is Order.EACH_PAGE:
        stream += b"".join(added(page) + chunks[page] for page in pages)
    else:
        stream += b"".join(map(added, pages)) + b"".join(chunks[page] for page in pages)
    stream += added(0xFFFFC000) + added(0x809000) + added(0x80A000)
    return hashlib.sha384(stream).digest()


@pytest.mark.parametrize("order", Order)
def test_mrtd_is_the_specifications(order: Order) -> None:
    assert mrtd(GOOD, order=order) == by_hand(GOOD, order)


def test_what_is_measured_of_firmware() -> None:
    """The variables' volume only by where it is; the code by every byte."""
    variables, code = bytearray(GOOD), bytearray(GOOD)
    variables[7] ^= 1
    code[4097] ^= 1
    assert mrtd(bytes(variables)) == mrtd(GOOD)
    assert mrtd(bytes(code)) != mrtd(GOOD)
    assert mrtd(GOOD, order=Order.EACH_SECTION) != mrtd(GOOD)


BROKEN = {
    "nothing": b"",
    "short": bytes(40),
    "no table": bytes(12288),
    "another version": made.tdvf(BFV, version=2),
    "no section": made.tdvf(),
    "too many sections": made.tdvf(*[HOB] * 65),
    "another length": made.tdvf(BFV, length=1000),
    "metadata outside": made.tdvf(BFV, offset=1 << 20),
    "metadata at the end": made.tdvf(BFV, offset=8),
    "outside the file": made.tdvf((4096, 16384, 0xFFFFD000, 16384, 0, 1)),
    "larger than its memory": made.tdvf((0, 8192, 0xFFFFD000, 4096, 0, 1)),
    "half a page": made.tdvf((0, 0, 0x1000, 100, 2, 0)),
    "between pages": made.tdvf((0, 0, 0x1001, 4096, 2, 0)),
    "an unknown type": made.tdvf((0, 0, 0x1000, 4096, 99, 0)),
    "one upon another": made.tdvf(HOB, HOB),
    "more than is sane": made.tdvf((0, 0, 0, 1 << 31, 3, 0)),
    "beyond memory": made.tdvf((0, 0, 1 << 53, 4096, 2, 0)),
}


FOOTER = len(GOOD) - 32 - 18
"""Where the last entry of the table of GUIDs begins; 18 bytes before it, that of TDX."""


def with_bytes(at: int, new: bytes, data: bytes = GOOD) -> bytes:
    return data[:at] + new + data[at + len(new) :]


TABLES = {
    "nothing": (b"", "has 0 bytes"),
    "too short for a table": (bytes(49), "is cut off"),
    "no table": (with_bytes(FOOTER + 2, b"\0"), "does not end with a table"),
    "a table smaller than its footer": (with_bytes(FOOTER, b"\x11\0"), "does not end with a table"),
    "a table larger than the file": (with_bytes(FOOTER, b"\0\xf0"), "does not end with a table"),
    "no entry of TDX": (with_bytes(FOOTER - 16, b"\0"), "says nothing about TDX"),
    "an entry smaller than its header": (with_bytes(FOOTER - 18, b"\x11\0"), "does not decode"),
    "an entry of no size": (with_bytes(FOOTER - 18, bytes(3)), "does not decode"),
    "an entry larger than the table": (with_bytes(FOOTER - 18, b"\0\1"), "does not decode"),
    "metadata behind the end": (
        with_bytes(
            len(GOOD) - 32,
            struct.pack("<4sIII", b"TDVF", 48, 1, 1),
            made.tdvf(BFV, offset=32),
        ),
        "of a wrong length",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_guids_that_does_not_decode(case: str) -> None:
    assert len(parse_tdvf(GOOD)) == 4
    data, why = TABLES[case]
    with pytest.raises(MalformedError, match=why):
        parse_tdvf(data)


def test_the_longest_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdx_launch, "MAX_FIRMWARE_BYTES", len(GOOD))
    assert len(parse_tdvf(GOOD)) == 4
    monkeypatch.setattr(tdx_launch, "MAX_FIRMWARE_BYTES", len(GOOD) - 1)
    with pytest.raises(MalformedError, match=f"has {len(GOOD)} bytes"):
        parse_tdvf(GOOD)


def test_how_much_firmware_lays_out() -> None:
    half = (0, 0, 0, 1 << 29, 3, 0)
    assert len(parse_tdvf(made.tdvf(half))) == 1
    with pytest.raises(MalformedError, match="more than"):
        parse_tdvf(made.tdvf(half, (0, 0, 1 << 30, 4096, 3, 0)))
    assert parse_tdvf(made.tdvf((0, 0, (1 << 52) - 4096, 4096, 2, 0)))
    with pytest.raises(MalformedError, match="whole pages"):
        parse_tdvf(made.tdvf((0, 0, 1 << 52, 4096, 2, 0)))


@pytest.mark.parametrize(("count", "kept"), [(1, True), (64, True), (65, False)])
def test_how_many_sections_there_are(count: int, kept: bool) -> None:
    """Each at an address of its own, so that nothing else is wrong with them."""
    metadata = struct.pack("<4sIII", b"TDVF", 16 + 32 * count, 1, count)
    for number in range(count):
        metadata += struct.pack("<IIQQII", 0, 0, 0x100000 + 4096 * number, 4096, 2, 0)
    data = with_bytes(4096, metadata, made.tdvf(BFV, offset=len(GOOD) - 4096))
    if kept:
        assert len(parse_tdvf(data)) == count
        return
    with pytest.raises(MalformedError, match="version 1"):
        parse_tdvf(data)


def test_sections_in_another_order_are_not_one_upon_another() -> None:
    assert len(parse_tdvf(made.tdvf(*reversed(made.TDX_SECTIONS)))) == 4


def test_pages_that_the_guest_accepts_later_are_not_measured() -> None:
    """For their attribute, whatever they are, or for being the memory itself."""
    alone = mrtd(made.tdvf(HOB))
    later = made.tdvf(HOB, (0, 0, 0x1000, 4096, 3, 2))
    memory = made.tdvf(HOB, (0, 0, 0x1000, 4096, 4, 0))
    measured = made.tdvf(HOB, (0, 0, 0x1000, 4096, 3, 0))
    assert mrtd(later) == mrtd(memory) == alone != mrtd(measured)


@pytest.mark.parametrize("case", BROKEN)
def test_firmware_that_does_not_decode(case: str) -> None:
    assert len(parse_tdvf(GOOD)) == 4
    with pytest.raises(MalformedError) as caught:
        mrtd(BROKEN[case])
    assert caught.value.code == "image.tdvf"


def parts(release: str = "252") -> BootParts:
    kernel = parse_uki(made.uki(release=release))
    return BootParts(kernel=kernel, partition_table=measured_table(made.disk()))


def extend(*digests: bytes) -> bytes:
    value = bytes(48)
    for digest in digests:
        value = hashlib.sha384(value + digest).digest()
    return value


def h(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def test_runtime_registers_by_hand() -> None:
    found = predicted_rtmrs(parts())
    line = made.COMMAND_LINE.decode().encode("utf-16-le") + b"\0\0"
    assert found["rtmr2"] == (bytes(48), extend(h(line), h(made.INITRD)))
    assert found["rtmr3"] == (bytes(48),)
    kernel = parts().kernel
    assert found["rtmr1"] == (
        extend(
            h(b"Calling EFI Application from Boot Option"),
            h(bytes(4)),
            h(measured_table(made.disk())),
            kernel.file.digest("sha384"),
            kernel.kernel.digest("sha384"),
            h(b"Exit Boot Services Invocation"),
            h(b"Exit Boot Services Returned with Success"),
        ),
    )


def test_later_stubs_measure_sections_without_a_tpm() -> None:
    before, after = predicted_rtmrs(parts("253")), predicted_rtmrs(parts("254"))
    assert before["rtmr2"][0] == bytes(48)
    first = [h(part) for part in (b".linux\0", made.kernel())]
    assert after["rtmr2"][0] != bytes(48)
    assert extend(*first) != after["rtmr2"][0]
    assert len(set(before["rtmr2"] + after["rtmr2"])) == 4


OTHERS = {
    "command line": made.uki(release="252", cmdline=b"other"),
    "initrd": made.uki(release="252", initrd=b"other"),
    "kernel": made.uki(release="252", linux=made.kernel(b"other")),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_changed_image_moves_the_boot_path(change: str) -> None:
    table = measured_table(made.disk())
    other = BootParts(kernel=parse_uki(OTHERS[change]), partition_table=table)
    assert predicted_rtmrs(other)["rtmr1"] != predicted_rtmrs(parts())["rtmr1"]


@with_evidence
@pytest.mark.evidence
@pytest.mark.parametrize(
    ("case", "with_table"), [("gcp-v4-cos113-ccel", True), ("live-v4-ccel", False)]
)
def test_real_guests_boot_paths(case: str, with_table: bool) -> None:
    """From the programs that a genuine log names, the register that the processor signed."""
    events = parse_ccel((EVIDENCE / case / "ccel_data.bin").read_bytes()).events
    body = parse_quote((EVIDENCE / case / "quote.bin").read_bytes()).body
    assert isinstance(body, TdReport)
    path = [event for event in events if event.pcr == 1]
    programs = [
        event.digests[Alg.SHA384]
        for event in path
        if event.type == EventType.EV_EFI_BOOT_SERVICES_APPLICATION
    ]
    tables = [event.data for event in path if event.type == EventType.EV_EFI_GPT_EVENT]
    assert bool(tables) is with_table
    assert boot_path_register(programs, tables[0] if tables else None) == body.rtmrs[1]
    data = (EVIDENCE / case / "ccel_data.bin").read_bytes()
    assert recorded_rtmr0(data) == body.rtmrs[0]
