"""An image for SEV-SNP, started as its recipe starts it, without a TPM and without the processor.

What is left out of the recipe is what only such a host has. The guest's kernel, its initrd and its
command line come out of the boot image as they do there; the command line names every disk.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.deploy import qemu
from cloister.deploy.deployment import describe, read_image
from cloister.deploy.plan import Run
from cloister.deploy.qemu_snp import qemu_snp_plan
from cloister.image.direct_boot import direct_boot
from cloister.image.footer import BLOCK
from cloister.image.machine import EMULATED
from cloister.image.stub import parse_uki
from support.guests import LIMIT_S, built_for

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(3000)]

FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")
ONLY_THERE = {"-accel": "tcg", "-machine": "q35", "-cpu": EMULATED, "-object": None}
"""What the recipe says for such a host, and what stands in for it."""


@pytest.fixture(scope="module")
def pinned(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image that `image` is, built for SEV-SNP (most of its steps stand already)."""
    return built_for(image, tmp_path_factory.mktemp("pinned"), "sev-snp")


@dataclass(frozen=True, kw_only=True)
class Started:
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    def wait_for(self, text: str) -> None:
        """Until the console says so; AssertionError if the machine ends before."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.console:
            assert self.process.poll() is None, self.console
            assert time.monotonic() < deadline, self.console
            time.sleep(0.2)


@contextlib.contextmanager
def started(
    image: Path, folder: Path, *, alter: Callable[[], object] = lambda: None, more: str = ""
) -> Iterator[Started]:
    """`alter` changes the image behind the recipe's own check of its files; `more` stands behind
    the command line."""
    deployment = describe("web", read_image(image, debug_accepted=False), folder)
    machine = qemu.Machine(vcpus=1, memory_mib=1024)
    plan = qemu_snp_plan(deployment, qemu.Host(firmware=FIRMWARE, machine=machine))
    boot = direct_boot(parse_uki((image / "uki.efi").read_bytes()))
    folder.mkdir()
    (folder / "kernel").write_bytes(boot.kernel)
    (folder / "initrd").write_bytes(boot.initrd)
    last = plan.steps[-1]
    assert isinstance(last, Run)
    words = iter([str(word) for word in last.argv])
    command = []
    for word in words:
        if word in ONLY_THERE:
            next(words)
            instead = ONLY_THERE[word]
            command += [] if instead is None else [word, instead]
        elif word == "-append":
            command += [word, next(words) + more]
        elif word != "-daemonize":
            command.append(word)
    alter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Started(process=process, folder=folder)
    finally:
        process.kill()
        process.wait()


def test_the_guest_opens_the_disks_that_the_command_line_names_and_has_no_evidence_here(
    pinned: Path, tmp_path: Path
) -> None:
    program = Path(sys.executable).parent / "cloister"
    keys = tmp_path / "keys.json"
    subprocess.run(
        [program, "keys", "add", "test", "--file", str(keys)], check=True, capture_output=True
    )
    with started(pinned, tmp_path / "vm") as guest:
        guest.wait_for("] worker")
        words = [str(guest.folder / "operator.sock"), "--api-keys", str(keys), "--timeout", "600"]
        said = subprocess.run([program, "image", "start", *words], capture_output=True, check=False)
        assert said.returncode != 0
        assert guest.process.wait(LIMIT_S) == 0  # powered off
        assert '"code": "device.absent"' in guest.console
        assert "worker.ready" not in guest.console


def test_another_command_line_is_not_accepted(pinned: Path, tmp_path: Path) -> None:
    """One that comes from elsewhere than the image, where the processor does not measure it."""
    with started(pinned, tmp_path / "vm", more=" loglevel=7") as guest:
        assert guest.process.wait(LIMIT_S) == 0
        assert "the command line is not the measured one" in guest.console
        assert "] worker" not in guest.console


def byte(disk: bytes) -> bytes:
    """The first of its file system, which is read when it is mounted."""
    return bytes([disk[0] ^ 1]) + disk[1:]


def footer(disk: bytes) -> bytes:
    """That of another disk, whole in itself."""
    line, _, _ = disk[-BLOCK:].partition(b"\n")
    words = line.split(b" ")
    words[5] = words[5][::-1]
    return disk[:-BLOCK] + (b" ".join(words) + b"\n").ljust(BLOCK, b"\0")


@pytest.mark.parametrize("name", ["application", "model"])
@pytest.mark.parametrize("change", [byte, footer])
def test_another_disk_is_not_opened(
    change: Callable[[bytes], bytes], name: str, pinned: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "image"
    shutil.copytree(pinned, copy)
    disk = copy / f"{name}.img"

    def alter() -> None:
        disk.write_bytes(change(disk.read_bytes()))

    with started(copy, tmp_path / "vm", alter=alter) as guest:
        assert guest.process.wait(LIMIT_S) == 0
        assert "init: " in guest.console
        assert "] worker" not in guest.console
