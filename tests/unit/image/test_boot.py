"""What becomes of a running guest: it ends, or its TPM does. Stand-ins for QEMU and swtpm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.swtpm import Manufactured
from cloister.attester.tpm_errors import TpmError
from cloister.errors import EngineError
from cloister.image import boot
from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.machine import Firmware, Machine

QEMU = """#!/bin/sh
echo 'the last words of a machine' >&2
exec sleep 3600
"""


class StandInTpm:
    """Runs until a test says otherwise."""

    ended: int | None = None

    @classmethod
    def start(cls, *_: object, **__: object) -> StandInTpm:
        return cls()

    def poll(self) -> int | None:
        return self.ended

    def stop(self) -> None:
        self.ended = 0


class StandInRelay:
    def __init__(self, **_: object) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BootedGuest]:
    program, variables = tmp_path / "qemu", tmp_path / "variables.fd"
    program.write_text(QEMU)
    program.chmod(0o755)
    variables.touch()
    monkeypatch.setattr(boot, "find_qemu", lambda: str(program))
    monkeypatch.setattr(boot, "MachineTpm", StandInTpm)
    monkeypatch.setattr(boot, "TpmRelay", StandInRelay)
    machine = Machine(
        firmware=Firmware(program=variables, variables=variables),
        esp=tmp_path / "esp.img",
        disks=(),
        port=None,
    )
    # Neither is looked at before a guest asks for a certificate.
    plan = BootPlan(
        machine=machine,
        tpm=Manufactured.__new__(Manufactured),
        ca=EnrolmentCa.__new__(EnrolmentCa),
    )
    with BootedGuest(plan) as booted:
        yield booted


def test_a_guest_that_ends_while_it_serves_is_an_error(guest: BootedGuest) -> None:
    assert guest.process.poll() is None
    guest.process.send_signal(signal.SIGKILL)
    with pytest.raises(EngineError, match="the guest stopped") as caught:
        guest.wait()
    assert caught.value.code == "guest.ended"


def test_the_last_lines_are_the_last_however_much_a_guest_wrote(guest: BootedGuest) -> None:
    with guest.sockets.console.open("a") as console:
        console.writelines(f"line {number}\n" for number in range(200_000))
    guest.process.send_signal(signal.SIGKILL)
    with pytest.raises(EngineError, match="line 199999") as caught:
        guest.wait()
    assert "line 199000\n" not in str(caught.value)


def test_a_machine_that_ends_is_told_of_though_its_tpm_ends_first(
    guest: BootedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TPM ends with its machine's connection: the last lines say why, and are to be shown."""

    def poll(_: object) -> int:
        guest.process.send_signal(signal.SIGKILL)
        return 0

    monkeypatch.setattr(StandInTpm, "poll", poll)
    with pytest.raises(EngineError, match="it said last") as caught:
        guest.wait_ready()
    assert caught.value.code == "guest.ended"


def test_a_guest_whose_tpm_is_gone_is_not_left_running_unseen(
    guest: BootedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "MACHINE_ENDS_WITHIN_S", 0.1)
    tpm: object = guest.tpm
    assert isinstance(tpm, StandInTpm)
    tpm.ended = -9
    for told in (guest.wait, guest.wait_ready):
        with pytest.raises(TpmError, match="swtpm") as caught:
            told()
        assert caught.value.code == "tpm.swtpm"
    assert guest.process.poll() is None
    guest.close()
    assert guest.process.poll() is not None
