"""Registers from parts, against arithmetic by hand, real boots and systemd's own tool."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from cloister.errors import MalformedError, UnsupportedError
from cloister.evidence.tpm import Alg
from cloister.image.authenticode import parse_pe
from cloister.image.boot_events import BootParts
from cloister.image.partition_table import PREFIX_BYTES, measured_table
from cloister.image.pcrs import PREDICTED, extend, predict
from cloister.image.secure_boot import (
    CERT_X509,
    SecureBoot,
    list_entries,
    signature_entry,
    signature_list,
)
from cloister.image.stub import parse_uki
from support import boot_parts as made

SYSTEMD_MEASURE = Path("/usr/lib/systemd/systemd-measure")
OWNER = uuid.UUID(int=7)
PARTS = BootParts(kernel=parse_uki(made.uki()), partition_table=measured_table(made.disk()))


def h(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


SEPARATOR = h(bytes(4))
ZERO = bytes(32)


def register(parts: BootParts, pcr: int) -> bytes:
    return predict(parts).registers[pcr]


def test_every_register_but_the_firmwares_and_imas_is_predicted() -> None:
    found = predict(PARTS)
    assert tuple(found.registers) == PREDICTED == (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
    assert found.registers[8] == found.registers[12] == found.registers[13] == ZERO
    for pcr in PREDICTED:
        assert extend(event.digests[Alg.SHA256] for event in found.of(pcr)) == found.registers[pcr]


@pytest.mark.parametrize(
    ("pcr", "beginning"),
    [
        (2, "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"),
        (7, "65caf8dd"),
    ],
)
def test_values_that_real_boots_quoted(pcr: int, beginning: str) -> None:
    """OVMF 2022.11 with an empty variable store, in QEMU with swtpm (a trial's record)."""
    assert register(PARTS, pcr).hex().startswith(beginning)


def test_by_hand() -> None:
    kernel, initrd = made.kernel(), made.INITRD
    line = made.COMMAND_LINE.decode().encode("utf-16-le") + b"\0\0"
    calling = h(b"Calling EFI Application from Boot Option")
    programs = [parse_pe(made.uki()).digest(), parse_pe(kernel).digest()]
    assert register(PARTS, 4) == extend([calling, SEPARATOR, *programs])
    table = made.disk()[512 : 512 + 92] + (1).to_bytes(8, "little") + made.disk()[1024:1152]
    left = [h(b"Exit Boot Services Invocation"), h(b"Exit Boot Services Returned with Success")]
    assert register(PARTS, 5) == extend([SEPARATOR, h(table), *left])
    assert register(PARTS, 9) == extend([h(line), h(initrd)])
    sections = {
        ".linux": kernel,
        ".osrel": made.OS_RELEASE,
        ".cmdline": made.COMMAND_LINE,
        ".initrd": initrd,
    }
    told = [h(part) for name, data in sections.items() for part in (name.encode() + b"\0", data)]
    assert register(PARTS, 11) == extend(told)


def test_disks_and_manifest() -> None:
    assert register(PARTS, 14) == register(PARTS, 15) == extend([SEPARATOR])
    digest = h(b"a manifest")
    both = dataclasses.replace(PARTS, application=b"app\n", model=b"model\n", manifest=digest)
    assert register(both, 14) == extend([h(b"app\n"), SEPARATOR])
    assert register(both, 15) == extend([h(b"model\n"), SEPARATOR])
    assert register(both, 13) == extend([digest])
    with pytest.raises(ValueError, match="32 bytes"):
        predict(dataclasses.replace(PARTS, manifest=b"short"))


SB_ENTRY = signature_entry(OWNER, b"certificate")
SECURE = SecureBoot(
    enabled=True,
    pk=signature_list(OWNER, b"pk"),
    kek=signature_list(OWNER, b"kek"),
    db=signature_list(OWNER, b"other") + signature_list(OWNER, b"certificate"),
    authority=SB_ENTRY,
)
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le


def variable(guid: bytes, name: str, value: bytes) -> bytes:
    sizes = len(name).to_bytes(8, "little") + len(value).to_bytes(8, "little")
    return h(guid + sizes + name.encode("utf-16-le") + value)


def test_secure_boot() -> None:
    """The kernel inside is started without the firmware, and PCR 7 names who was believed."""
    secured = dataclasses.replace(PARTS, secure_boot=SECURE)
    calling = h(b"Calling EFI Application from Boot Option")
    assert register(secured, 4) == extend([calling, SEPARATOR, parse_pe(made.uki()).digest()])
    assert register(secured, 7) == extend(
        [
            variable(GLOBAL, "SecureBoot", b"\1"),
            variable(GLOBAL, "PK", SECURE.pk),
            variable(GLOBAL, "KEK", SECURE.kek),
            variable(DATABASE, "db", SECURE.db),
            variable(DATABASE, "dbx", b""),
            SEPARATOR,
            variable(DATABASE, "db", SB_ENTRY),
        ]
    )
    same = set(PREDICTED) - {4, 7}
    assert all(register(secured, pcr) == register(PARTS, pcr) for pcr in same)


def test_states_that_no_firmware_is_in() -> None:
    with pytest.raises(ValueError, match="authority"):
        dataclasses.replace(SECURE, authority=b"")
    with pytest.raises(ValueError, match="no entry"):
        dataclasses.replace(SECURE, authority=signature_entry(OWNER, b"stranger"))
    with pytest.raises(ValueError, match="authority"):
        SecureBoot(enabled=False, db=SECURE.db, authority=SB_ENTRY)
    with pytest.raises(ValueError, match="authority"):
        SecureBoot(enabled=True, db=SECURE.db)
    with pytest.raises(ValueError, match="has none"):
        dataclasses.replace(SECURE, supported=False)


CHANGES: dict[str, tuple[BootParts, set[int]]] = {
    "command line": (
        dataclasses.replace(PARTS, kernel=parse_uki(made.uki(cmdline=b"other"))),
        {4, 9, 11},
    ),
    "initrd": (dataclasses.replace(PARTS, kernel=parse_uki(made.uki(initrd=b"other"))), {4, 9, 11}),
    "os-release": (dataclasses.replace(PARTS, kernel=parse_uki(made.uki(osrel=b"ID=o"))), {4, 11}),
    "kernel": (
        dataclasses.replace(PARTS, kernel=parse_uki(made.uki(linux=made.kernel(b"other")))),
        {4, 11},
    ),
    "partition": (
        dataclasses.replace(PARTS, partition_table=measured_table(made.disk(partition=b"9" * 16))),
        {5},
    ),
    "Secure Boot": (dataclasses.replace(PARTS, secure_boot=SECURE), {4, 7}),
    "manifest": (dataclasses.replace(PARTS, manifest=bytes(32)), {13}),
    "application disk": (dataclasses.replace(PARTS, application=b"line\n"), {14}),
    "model disk": (dataclasses.replace(PARTS, model=b"line\n"), {15}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_which_change_moves_which_register(change: str) -> None:
    parts, moved = CHANGES[change]
    before, after = predict(PARTS).registers, predict(parts).registers
    assert {pcr for pcr in PREDICTED if before[pcr] != after[pcr]} == moved


@pytest.mark.parametrize("release", ["252.39-1", "253.1"])
def test_stubs_before_254_leave_sbat_out(release: str) -> None:
    names = [name for name, _ in parse_uki(made.uki(release=release)).measured_sections()]
    assert names == [".linux", ".osrel", ".cmdline", ".initrd"]


def test_later_stubs_measure_sbat_last() -> None:
    names = [name for name, _ in parse_uki(made.uki(release="254.16")).measured_sections()]
    assert names == [".linux", ".osrel", ".cmdline", ".initrd", ".sbat"]


def test_uname_is_measured_since_253() -> None:
    for release, there in (("252", False), ("253", True)):
        names = [
            n for n, _ in parse_uki(made.uki(release=release, uname=b"6.1")).measured_sections()
        ]
        assert (".uname" in names) is there


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (made.uki(release="251"), UnsupportedError),
        (made.uki(release="256.7"), UnsupportedError),
        (made.uki(release="x"), UnsupportedError),
        (made.uki(cmdline=b" begins with a blank"), UnsupportedError),
        (made.uki(cmdline=b"two\nlines"), UnsupportedError),
        (made.uki(cmdline="ä".encode()), UnsupportedError),
        (made.uki(cmdline=b"x" * 2048), UnsupportedError),
        (made.uki(sections={".ucode": b"x"}), UnsupportedError),
        (made.uki(sections={".profile": b"x"}), UnsupportedError),
        (made.uki(initrd=b""), MalformedError),
        (made.uki(linux=b"no program"), MalformedError),
        (made.kernel(), MalformedError),
    ],
)
def test_what_cannot_be_predicted(data: bytes, error: type[Exception]) -> None:
    assert parse_uki(made.uki()).stub_release == 252
    with pytest.raises(error):
        parse_uki(data)


def test_a_disk_needs_only_its_beginning() -> None:
    disk = made.disk()
    assert len(disk) == PREFIX_BYTES
    assert measured_table(disk) == measured_table(disk + b"more")


@pytest.mark.parametrize(
    "at", [512, 520, 524, 528, 532, 536, 536 + 48, 512 + 80, 512 + 84, 512 + 88, 1024, 1024 + 200]
)
def test_a_damaged_partition_table(at: int) -> None:
    disk = made.disk()
    assert measured_table(disk)
    damaged = disk[:at] + bytes([disk[at] ^ 0xFF]) + disk[at + 1 :]
    with pytest.raises(MalformedError):
        measured_table(damaged)


def test_a_partition_table_that_is_cut_off() -> None:
    with pytest.raises(MalformedError, match="cut off"):
        measured_table(made.disk()[:-1])


def signatures(*, size: int, each: int) -> bytes:
    """The header of a signature list of certificates."""
    numbers = b"".join(number.to_bytes(4, "little") for number in (size, 0, each))
    return CERT_X509.bytes_le + numbers


def test_databases_are_read_whole() -> None:
    assert list_entries(SECURE.db) == (signature_entry(OWNER, b"other"), SB_ENTRY)
    hashes = bytes(16) + (28 + 48).to_bytes(4, "little") + bytes(4) + (48).to_bytes(4, "little")
    assert list_entries(hashes + bytes(48)) == ()  # of another type
    for broken in (
        SECURE.db[:-1],
        SECURE.db + b"x",
        CERT_X509.bytes_le + bytes(12),
        CERT_X509.bytes_le + (28).to_bytes(4, "little") + bytes(4) + (16).to_bytes(4, "little"),
        CERT_X509.bytes_le + (99).to_bytes(4, "little") + bytes(4) + (17).to_bytes(4, "little"),
        signatures(size=28 + 30, each=20) + bytes(30),
        bytes((1 << 20) + 1),
    ):
        with pytest.raises(MalformedError):
            list_entries(broken)


@pytest.mark.skipif(
    not SYSTEMD_MEASURE.exists(), reason="PCR 11 NOT COMPARED: systemd-measure is not installed"
)
def test_systemd_measure_agrees(tmp_path: Path) -> None:
    """252, as Debian 12 has it, measures for stubs of its own release."""
    kernel = parse_uki(made.uki())
    command = [str(SYSTEMD_MEASURE), "calculate", "--bank=sha256", "--phase=:"]
    for name, content in kernel.measured_sections():
        (tmp_path / name).write_bytes(content)
        command.append(f"--{name[1:]}={tmp_path / name}")
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (value,) = re.findall(r"11:sha256=([0-9a-f]{64})", printed)
    assert value == register(PARTS, 11).hex()
