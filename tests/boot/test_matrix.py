"""Which change moves which register, and what a client that expects none says about it.

Every row is a boot, and a row of the table in docs/how-to/boot-images.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.cli.image_boot import DISKS, ESP, predicted
from cloister.image.machine import Machine
from cloister.image.uki import UkiParts
from cloister.verifier.platforms.measured_boot import ACPI_NOT_MEASURED
from support import image_changes as change
from support.boot_table import Row, rows
from support.guests import GoodBoot, Operator, booted, changed, findings
from support.image_changes import with_parts

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]

IMA = 10
"""Linux' own measurement of files, which begins with the registers from 0 to 9."""

Change = Callable[[Path, Path, Machine], Machine]
"""From the image, a folder for a changed one and the good boot's machine to the changed machine."""


def started_from(folder: Path, machine: Machine) -> Machine:
    return dataclasses.replace(
        machine, esp=folder / ESP, disks=tuple(folder / name for name in DISKS)
    )


def of_machine(**fields: object) -> Change:
    return lambda image, folder, machine: dataclasses.replace(machine, **fields)  # type: ignore[arg-type]


def of_parts(alter: Callable[[UkiParts], UkiParts]) -> Change:
    def make(image: Path, folder: Path, machine: Machine) -> Machine:
        return started_from(with_parts(image, folder, alter), machine)

    return make


def of_disk(name: str) -> Change:
    def make(image: Path, folder: Path, machine: Machine) -> Machine:
        return started_from(change.with_another_salt(image, folder, name), machine)

    return make


def of_esp(path: str) -> Change:
    def make(image: Path, folder: Path, machine: Machine) -> Machine:
        change.own_esp(image, folder)
        change.with_file(folder, path, b"hello")
        return started_from(folder, machine)

    return make


def larger_esp(image: Path, folder: Path, machine: Machine) -> Machine:
    return started_from(change.with_larger_esp(image, folder), machine)


def other_root(image: Path, folder: Path, machine: Machine) -> Machine:
    """The same files under another root hash, which stands on the command line."""
    change.with_another_salt(image, folder, "root.img")
    footer = change.footer_of(folder / "root.img")

    def alter(parts: UkiParts) -> UkiParts:
        words = [
            f"cloister.root={footer.argument()}" if word.startswith("cloister.root=") else word
            for word in parts.command_line.split(" ")
        ]
        return dataclasses.replace(parts, command_line=" ".join(words))

    change.with_parts_in(folder, alter)
    return started_from(folder, machine)


def acpi_table(image: Path, folder: Path, machine: Machine) -> Machine:
    folder.mkdir()
    (folder / "table").write_bytes(b"")
    table = (
        f"sig=SSDT,rev=2,oem_id=EVIL,oem_table_id=EVIL,oem_rev=1,asl_compiler_id=EVIL,"
        f"asl_compiler_rev=1,data={folder / 'table'}"
    )
    return dataclasses.replace(machine, more=("-acpitable", table))


def with_command_line(more: str) -> Change:
    return of_parts(
        lambda parts: dataclasses.replace(parts, command_line=f"{parts.command_line} {more}")
    )


CHANGES: dict[str, Change] = {
    "nothing": of_machine(),
    "memory": of_machine(memory_mib=1536),
    "processors": of_machine(cpus=2),
    "NVMe disks": of_machine(disk_device="nvme"),
    "option ROM": of_machine(
        more=("-netdev", "user,id=other,restrict=on", "-device", "e1000,netdev=other")
    ),
    "SMBIOS string": of_machine(more=("-smbios", "type=11,value=io.systemd.credential:a=b")),
    "ACPI table": acpi_table,
    "command line": with_command_line("cloister.note=1"),
    "debug image": with_command_line("cloister.debug=1"),
    "initrd": of_parts(
        lambda parts: dataclasses.replace(parts, initrd=change.initrd_with_a_note(parts.initrd))
    ),
    "os-release": of_parts(
        lambda parts: dataclasses.replace(parts, os_release=parts.os_release + "BUILD_ID=2\n")
    ),
    "root disk": other_root,
    "application disk": of_disk("application.img"),
    "model disk": of_disk("model.img"),
    "size of the ESP": larger_esp,
    "stray file on the ESP": of_esp("note.txt"),
    "credential on the ESP": of_esp("EFI/BOOT/BOOTX64.EFI.extra.d/note.cred"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a changed boot left."""

    moved: tuple[int, ...]
    refused: dict[str, str]
    not_proven: tuple[str, ...]


ROWS = {row.change: row for row in rows() if row.change in CHANGES}


def test_every_row_of_the_page_is_tried() -> None:
    elsewhere = {"boot entry", "Secure Boot"}  # tests/boot/test_boot.py, test_secure_boot.py
    assert {row.change for row in rows()} == CHANGES.keys() | elsewhere


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.change)
def test_which_registers_move(
    row: Row, good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    machine = CHANGES[row.change](image, tmp_path / "changed", changed(good.machine, {}))
    with booted(machine, operator) as guest:
        registers = guest.registers()
        result = guest.result(good.values)
        log = guest.booted.boot_log
    moved = tuple(
        pcr for pcr, value in good.registers.items() if pcr != IMA and registers[pcr] != value
    )
    print(f"| {row.change} | {', '.join(map(str, moved)) or 'none'} |")
    refused = findings(result)
    assert moved == row.moved
    for claim in row.claims:
        assert refused[claim] == "measurement_mismatch"
    if not row.claims:
        result.require_affirming()
    if row.change == "ACPI table":
        # This firmware measures none, and the result says so; PCR 1 moves where it does.
        assert 1 in moved or ACPI_NOT_MEASURED in result.not_proven
    if (tmp_path / "changed" / "uki.efi").exists():
        # What was changed in the image is predicted from the image as well.
        values = predicted(tmp_path / "changed", log, machine)
        (reference,) = values.platforms
        assert reference.differing({f"pcr{n}": value for n, value in registers.items()}) == () or (
            row.change == "credential on the ESP"
        )
