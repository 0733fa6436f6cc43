"""An emulated machine's way to its TPM, with a machine that is this test."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attester.swtpm import MachineTpm
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import TpmError
from cloister.attester.transport import SocketTransport
from cloister.image.tpm_relay import TpmRelay
from support.software_tpm import HAVE_SWTPM, manufactured

pytestmark = pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed")

# swtpm's control channel, as QEMU speaks it (``backends/tpm/tpm_ioctl.h``).
INIT = struct.pack(">II", 2, 0)
TAKE_COMMANDS_HERE = struct.pack(">I", 16)
DONE = bytes(4)
BANKS = struct.pack(">HIIIII", 0x8001, 22, 0x17A, 5, 0, 64)
COMMANDS_WITHIN_S = 60.0


class Machine:
    """QEMU's side: a control connection, and one for commands whose other end it gives away."""

    def __init__(self, where: Path) -> None:
        self.control = socket.socket(socket.AF_UNIX)
        self.control.settimeout(COMMANDS_WITHIN_S)
        self.control.connect(str(where))
        self.commands, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [TAKE_COMMANDS_HERE], [theirs.fileno()])
        assert self.control.recv(64) == DONE
        self.control.sendall(INIT)
        assert self.control.recv(64) == DONE
        self.transport = SocketTransport(self.commands, timeout=COMMANDS_WITHIN_S)
        self.tpm = Tpm(self.transport)
        self.tpm.startup()

    def banks(self) -> list[int]:
        """The hash algorithms of the banks that the TPM names."""
        rows = self.transport.exchange(BANKS)[19:]
        assert len(rows) % 6 == 0
        return [name for name, _, _ in struct.iter_unpack(">HB3s", rows)]

    def close(self) -> None:
        self.transport.close()
        self.control.close()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[MachineTpm, Path]]:
    """A TPM that waits for its machine; sockets in a folder whose path is short."""
    folder.mkdir()
    tpm = MachineTpm.start(manufactured(), runtime=folder, control=folder / "swtpm.sock")
    try:
        yield tpm, folder / "swtpm.sock"
    finally:
        tpm.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's, whose path may be too long for a socket's."""
    with tempfile.TemporaryDirectory(prefix="cloister-", dir="/tmp") as short:
        yield Path(short)


def test_a_machine_sees_one_bank_and_the_same_registers(folder: Path) -> None:
    seen = []
    for relayed in (False, True):
        with running(folder / str(relayed)) as (_, control):
            listen = control.with_name("tpm.sock")
            relay = TpmRelay(listen=listen, control=control) if relayed else None
            machine = Machine(listen if relayed else control)
            machine.tpm.extend(14, bytes(range(32)))
            seen.append((machine.banks(), machine.tpm.read_pcrs((0, 14))))
            machine.close()
            if relay is not None:
                relay.stop()
    (every, registers), (one, same) = seen
    assert len(every) > 1
    assert one == [11]  # SHA-256
    assert same == registers
    assert registers[14] != bytes(32)


def test_a_tpm_ends_with_its_machine(folder: Path) -> None:
    with running(folder / "x") as (tpm, control):
        relay = TpmRelay(listen=control.with_name("tpm.sock"), control=control)
        machine = Machine(control.with_name("tpm.sock"))
        assert machine.banks() == [11]
        assert tpm.poll() is None
        machine.close()
        until = time.monotonic() + COMMANDS_WITHIN_S
        while tpm.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        relay.stop()


def test_a_relay_that_stops_lets_its_machine_go(folder: Path) -> None:
    with running(folder / "x") as (_, control):
        relay = TpmRelay(listen=control.with_name("tpm.sock"), control=control)
        machine = Machine(control.with_name("tpm.sock"))
        relay.stop()
        relay.stop()
        assert machine.control.recv(1) == b""
        with pytest.raises(TpmError):
            machine.banks()
        machine.close()


def test_a_machine_hears_that_its_tpm_has_ended(folder: Path) -> None:
    with running(folder / "x") as (tpm, control):
        relay = TpmRelay(listen=control.with_name("tpm.sock"), control=control)
        machine = Machine(control.with_name("tpm.sock"))
        assert machine.banks() == [11]
        tpm.stop()
        assert machine.control.recv(1) == b""
        machine.close()
        relay.stop()


def test_a_relay_stops_that_no_machine_came_to(folder: Path) -> None:
    with running(folder / "x") as (_, control):
        TpmRelay(listen=control.with_name("tpm.sock"), control=control).stop()


def test_a_tpm_that_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(TpmError) as refused:
        TpmRelay(listen=folder / "tpm.sock", control=folder / "swtpm.sock")
    assert refused.value.code == "tpm.swtpm"
