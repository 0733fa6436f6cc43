"""One image, one operator, one good boot, which all tests here compare theirs with."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import pytest

from cloister.cli.image_boot import predicted
from cloister.image.machine import QEMU
from support.guests import GoodBoot, Operator, booted, judged, machine_for, registers_of

IMAGE = "CLOISTER_BOOT_IMAGE"


@pytest.fixture(scope="session")
def image() -> Path:
    """The folder that `make boot-sample` built, or any other image of the demo model."""
    named = os.environ.get(IMAGE)
    if named is None:
        pytest.skip(f"no image to boot: name its folder in {IMAGE} (make boot-sample does)")
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed (scripts/setup boot)")
    return Path(named)


@pytest.fixture(scope="session")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator.make(tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="session")
def good(image: Path, operator: Operator) -> GoodBoot:
    """Boots once; what has to be asked of the guest is asked in here."""
    machine = machine_for(image)
    with booted(machine, operator) as guest:
        values = predicted(image, guest.booted.boot_log, machine)
        nonce = secrets.token_bytes(32)
        report = guest.report(nonce)
        judged(report, nonce, values, operator.roots).require_affirming()
        answer = guest.ask(values, "What is Cloister?")
        return GoodBoot(
            machine=machine,
            values=values,
            registers=registers_of(report),
            boot_log=guest.booted.boot_log,
            nonce=nonce,
            report=report,
            answer=answer,
            time_line=dict(guest.booted.time_line),
        )
