"""Secure Boot with an operator's own keys: one image is started, others the firmware refuses.

The row "Secure Boot" of the table in docs/how-to/boot-images.md.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.cli.image_boot import DISKS, ESP, chosen_firmware, predicted
from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.machine import Machine
from cloister.verifier.reference_values import ReferenceValues
from support import image_changes as change
from support.boot_table import rows
from support.guests import LIMIT_S, GoodBoot, Operator, booted, changed, findings
from support.secure_boot_keys import OperatorKeys

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]

STARTED = "init: ["
"""The console has it when the kernel has started the image's init."""
REFUSED = "Access Denied"
NOTHING_ELSE = "No bootable option or device was found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """An image that the operator signed, on a machine that has the operator's keys."""

    keys: OperatorKeys
    machine: Machine
    values: ReferenceValues
    registers: dict[int, bytes]
    against_plain: dict[str, str]
    """What a client finds that expects the same image without Secure Boot."""
    against_own: dict[str, str]


def refuses(plan: BootPlan) -> None:
    """The firmware looks at the image, does not start it, and finds nothing else to start."""
    with BootedGuest(plan) as guest:
        ends = time.monotonic() + LIMIT_S
        while NOTHING_ELSE not in (said := guest.console()):
            assert STARTED not in said
            assert guest.process.poll() is None
            assert time.monotonic() < ends, said
            time.sleep(0.2)
    assert REFUSED in said


def of(folder: Path, machine: Machine) -> Machine:
    disks = tuple(folder / name for name in DISKS)
    return changed(machine, {"esp": folder / ESP, "disks": disks})


@pytest.fixture(scope="module")
def secured(
    good: GoodBoot, operator: Operator, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Secured:
    work = tmp_path_factory.mktemp("secured")
    keys = OperatorKeys.make(work / "keys")
    state = keys.keys.state()
    signed = keys.sign((image / "uki.efi").read_bytes())
    folder = change.with_program(image, work / "signed", signed)
    firmware = chosen_firmware(None, None, work, state)
    machine = dataclasses.replace(of(folder, good.machine), firmware=firmware)
    with booted(machine, operator) as guest:
        values = predicted(folder, guest.booted.boot_log, machine, state)
        return Secured(
            keys=keys,
            machine=machine,
            values=values,
            registers=guest.registers(),
            against_plain=findings(guest.result(good.values)),
            against_own=findings(guest.result(values)),
        )


def test_every_register_was_predicted(secured: Secured) -> None:
    (reference,) = secured.values.platforms
    for pcr in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15):
        assert reference.registers[f"pcr{pcr}"] == (secured.registers[pcr].hex(),)
    assert set(secured.against_own.values()) == {"affirmed"}


def test_which_registers_move(good: GoodBoot, secured: Secured) -> None:
    (row,) = (row for row in rows() if row.change == "Secure Boot")
    moved = tuple(
        pcr for pcr, was in good.registers.items() if pcr != 10 and secured.registers[pcr] != was
    )
    assert moved == row.moved
    for claim in row.claims:
        assert secured.against_plain[claim] == "measurement_mismatch"


@pytest.mark.parametrize("signer", ["nobody", "somebody else"])
def test_another_image_is_not_started(
    signer: str, secured: Secured, operator: Operator, image: Path, tmp_path: Path
) -> None:
    assert secured.registers
    program = (image / "uki.efi").read_bytes()
    if signer == "somebody else":
        program = OperatorKeys.make(tmp_path / "theirs").sign(program)
    folder = change.with_program(image, tmp_path / "other", program)
    machine = of(folder, secured.machine)
    plan = BootPlan(machine=machine, tpm=operator.tpm, ca=operator.ca, api_keys=operator.table)
    refuses(plan)


def test_one_byte_behind_the_signature_is_not_started(
    secured: Secured, operator: Operator, tmp_path: Path
) -> None:
    """The signature is the operator's, and what it was made for is not what lies there."""
    signed = bytearray((secured.machine.esp.parent / "uki.efi").read_bytes())
    at = signed.index(b"cloister.root=")
    signed[at] ^= 1
    folder = change.with_program(secured.machine.esp.parent, tmp_path / "other", bytes(signed))
    plan = BootPlan(machine=of(folder, secured.machine), tpm=operator.tpm, ca=operator.ca)
    refuses(plan)


def test_another_operators_keys_are_another_state(
    secured: Secured, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """Whoever runs the machine enrols keys of their own, and signs the same image with them."""
    theirs = OperatorKeys.make(tmp_path / "theirs")
    signed = theirs.sign((image / "uki.efi").read_bytes())
    folder = change.with_program(image, tmp_path / "signed", signed)
    firmware = chosen_firmware(None, None, tmp_path / "state", theirs.keys.state())
    machine = dataclasses.replace(of(folder, secured.machine), firmware=firmware)
    with booted(machine, operator) as guest:
        refused = findings(guest.result(secured.values))
    assert refused["boot.secure_boot"] == "measurement_mismatch"
    assert refused["boot.loader"] == refused["boot.image"] == "affirmed"
