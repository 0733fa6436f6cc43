"""An enclave image in QEMU's emulation of a Nitro enclave, with its parent's end beside it.

The emulated machine has no clock that a kernel could measure its processor's by (no PIT, HPET or
PM timer once ACPI is on, which Debian's kernel needs to find the machine's devices). So what is
started is the built image with one more argument on its command line, which says how fast that is,
in the init's own copy too. It is another image, with other registers, predicted like any image's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.image.eif import EifMeasurements
from cloister.image.eif_image import measurements_of, signed_parts
from cloister.image.eif_write import write_eif
from cloister.image.initrd import Entry, archive

CID: Final = 16
REQUESTS: Final = 8440
OPERATOR: Final = 8441
HEARTBEAT_PORT: Final = 9000
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcde"
MEMORY_MIB: Final = 1536
TESTS: Final = Path(__file__).parent.parent


def emulated_image(
    folder: Path, target: Path, *, alter: Callable[[bytes], bytes] = lambda ramdisk: ramdisk
) -> EifMeasurements:
    """Write what is started in place of the image in `folder`, and say its registers.

    `alter` changes the second ramdisk, as somebody would who builds another image.
    """
    more = f" tsc_early_khz={processor_khz()}"
    with tempfile.TemporaryDirectory() as work:
        parts = signed_parts(folder, Path(work), None)
        line = parts.cmdline + more
        with parts.ramdisks[0].open("ab") as first:
            # The kernel unpacks one archive after the other: this copy takes the other's place.
            copy = Entry(
                name="etc/cmdline", mode=stat.S_IFREG | 0o444, data=line.encode("ascii") + b"\n"
            )
            first.write(archive([copy]))
        second = parts.ramdisks[1]
        second.write_bytes(alter(second.read_bytes()))
        return measurements_of(write_eif(dataclasses.replace(parts, cmdline=line), target))


def processor_khz() -> int:
    """How fast this machine's counter runs, which is what an emulated one shows."""
    found = re.search(r"^cpu MHz\s*:\s*(\d+)\.(\d{3})", Path("/proc/cpuinfo").read_text(), re.M)
    assert found is not None
    return int(found[1] + found[2])


@dataclass(frozen=True, kw_only=True)
class Enclave:
    """A started enclave."""

    qemu: subprocess.Popen[bytes]
    folder: Path
    heartbeats: list[bytes] = field(default_factory=list)

    @property
    def requests(self) -> Path:
        """The unix socket that leads to the worker's vsock port."""
        return self.folder / f"guest-{REQUESTS}.sock"

    @property
    def operator(self) -> Path:
        """The one that leads to the operator's port."""
        return self.folder / f"guest-{OPERATOR}.sock"

    @property
    def console(self) -> str:
        """What the enclave has said so far."""
        try:
            return (self.folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""  # QEMU makes the file when it starts

    def wait_until(self, holds: Callable[[], object], *, limit_s: float) -> None:
        """Return once `holds`; AssertionError with the console where the enclave ends first."""
        until = time.monotonic() + limit_s
        while not holds():
            assert self.qemu.poll() is None, self.console[-2000:]
            assert time.monotonic() < until, self.console[-2000:]
            time.sleep(0.2)


@contextlib.contextmanager
def started(image: Path, *, parent_answers: bool = True) -> Iterator[Enclave]:
    """Start an image. With `parent_answers` false the parent takes no heartbeat."""
    with contextlib.ExitStack() as stack:
        # Not pytest's folder: the path of a socket holds 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enclave-")))
        heartbeats: list[bytes] = []
        if parent_answers:
            stack.enter_context(_heartbeat(folder, heartbeats))
        backend = [sys.executable, "-m", "support.vhost_vsock", str(folder), str(CID)]
        ports = [str(REQUESTS), str(OPERATOR)]
        parent = stack.enter_context(_running([*backend, *ports], cwd=TESTS))
        while not (folder / "vhost.sock").exists():
            assert parent.poll() is None, "the parent's end does not start"
            time.sleep(0.1)
        qemu = stack.enter_context(_running(_command(image, folder), cwd=folder))
        yield Enclave(qemu=qemu, folder=folder, heartbeats=heartbeats)


def _command(image: Path, folder: Path) -> list[str]:
    return [
        os.environ["CLOISTER_NITRO_QEMU"],
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # ACPI, which the machine leaves out by default, says where its devices are.
        *("-machine", f"nitro-enclave,vsock=parent,id={MODULE_ID},acpi=on"),
        *("-accel", "tcg,thread=multi", "-cpu", "max,erms=off"),
        *("-m", str(MEMORY_MIB), "-smp", "1", "-kernel", str(image)),
        *("-serial", f"file:{folder / 'console.log'}"),
        *("-chardev", f"socket,id=parent,path={folder / 'vhost.sock'}"),
    ]


@contextlib.contextmanager
def _running(command: list[str], *, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _heartbeat(folder: Path, heard: list[bytes]) -> Iterator[None]:
    """Answers an enclave as ``nitro-cli`` does on the parent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f"parent-{HEARTBEAT_PORT}.sock"))
    listener.listen(1)

    def answer() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(1))
                connection.sendall(heard[-1])
                heard.append(connection.recv(1))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
