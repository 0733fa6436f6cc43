"""An image boots, is affirmed by the unchanged client, and is refused where it was changed.

The everyday sample of `test_matrix.py`: one good boot and three attacks.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from cloister.errors import AppraisalError, EngineError
from cloister.image.esp import layout_for
from support.firmware_variables import with_boot_entry
from support.guests import GoodBoot, Operator, booted, changed, findings, judged
from support.image_changes import taken_apart, with_byte_changed

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.timeout(2400)]


def test_the_client_verifies_and_chats(good: GoodBoot, operator: Operator) -> None:
    result = judged(good.report, good.nonce, good.values, operator.roots)
    assert result.require_affirming().development
    assert result.platform.startswith("development (")
    assert result.memory_confidentiality == "none"
    assert good.answer.strip()


def test_every_register_but_the_machines_own_was_predicted(good: GoodBoot) -> None:
    (reference,) = good.values.platforms
    for pcr in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15):
        assert good.registers[pcr].hex() in reference.registers[f"pcr{pcr}"]


def test_an_old_quote_is_refused(good: GoodBoot, operator: Operator) -> None:
    judged(good.report, good.nonce, good.values, operator.roots).require_affirming()
    replayed = judged(good.report, secrets.token_bytes(32), good.values, operator.roots)
    assert findings(replayed)["quote.fresh"] == "quote_nonce"


def test_another_command_line_by_a_boot_entry_of_the_firmware(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """The image is untouched, and so are the registers that name it."""
    uki = (image / "uki.efi").read_bytes()
    _, parts = taken_apart(uki)
    variables = tmp_path / "variables.fd"
    variables.write_bytes(
        with_boot_entry(
            good.machine.firmware.variables.read_bytes(),
            layout_for(len(uki)),
            parts.command_line + " cloister.attacker=1",
        )
    )
    firmware = good.machine.firmware
    machine = changed(
        good.machine,
        {
            "firmware": type(firmware)(program=firmware.program, variables=variables),
            "boot_entry": False,
        },
    )
    with booted(machine, operator) as guest:
        registers = guest.registers()
        refused = findings(guest.result(good.values))
        with pytest.raises(AppraisalError):
            guest.ask(good.values, "What is Cloister?")
    assert registers[4] == good.registers[4]
    assert registers[11] == good.registers[11]
    assert refused["boot.kernel_inputs"] == "measurement_mismatch"
    assert refused["boot.additions"] == "measurement_mismatch"
    assert refused["boot.loader"] == refused["boot.image"] == "affirmed"


def test_one_byte_of_the_root(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """Nobody is left to answer: the kernel stops at the first block that is not as measured."""
    assert good.answer
    altered = with_byte_changed(image, tmp_path / "altered", "root.img", 96)
    disks = tuple(altered / disk.name for disk in good.machine.disks)
    with (
        pytest.raises(EngineError) as caught,
        booted(changed(good.machine, {"disks": disks}), operator),
    ):
        pass
    assert caught.value.code == "guest.ended"
    assert "] worker" not in str(caught.value)
