"""The guest's init whole, on a machine of files: `init_machine.c` stands for the kernel."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.image.footer import BLOCK, DiskFooter
from cloister.image.init_program import SOURCES
from support.init_harness import compile_harness

PROGRAM: Final = Path(__file__).with_suffix(".c")
_INSTEAD: Final = (
    *("main=init_main", "getpid=first_process", "open=opened", "read=read_from", "pread=read_at"),
    *("write=written", "close=closed", "access=reached", "lstat=looked_at", "opendir=listed"),
    *("nanosleep=slept", "sleep=sleeps", "pause=paused", "mkdir=made", "symlink=linked"),
    *("chown=owned", "mount=mounted", "ioctl=asked", "socket=talks", "setsockopt=with_option"),
    *("connect=connected", "syscall=called", "fork=forked", "waitpid=waited", "execve=executed"),
    *("_exit=left", "reboot=restarted", "chdir=moved_to", "chroot=rooted", "umask=masked"),
    *("setsid=with_session", "dup2=moved_file", "prctl=ruled", "setrlimit=limited"),
    *("setgroups=grouped", "setresgid=group_set", "setresuid=user_set"),
)

DISKS: Final = {
    kind: DiskFooter(
        kind=kind, fs=fs, data_blocks=16, hash_start=17, root_hash=byte * 32, salt="5a" * 32
    )
    for kind, fs, byte in (
        ("root", "squashfs", "aa"),
        ("application", "squashfs", "bb"),
        ("model", "erofs", "cc"),
    )
}
FIRST: Final = "console=ttyS0 panic=-1"
COMMON: Final = {
    "dev/mapper/control": "",
    "run/cloister/": "",
    "modules/list": "01-verity.ko\n",
    "modules/01-verity.ko": "module",
    "sys/class/net/lo/type": "772\n",
    "sys/class/net/eth0/type": "1\n",
    "sysroot/application/command": "/opt/cloister/bin/python\n-I\n/application/start.py\n",
    "sysroot/application/interface.conf": "address 10.0.2.15/24\ngateway 10.0.2.2\n",
}
ROOT_ARGUMENT: Final = f"cloister.root={DISKS['root'].argument()}"


START: Final = b"cloister-start/1 1 ".ljust(BLOCK + 1, b"\0")


def disk(kind: str) -> bytes:
    """A disk whose last block says what it is."""
    return bytes(BLOCK) + DISKS[kind].encode()


def block_devices(disks: Mapping[str, bytes]) -> dict[str, str | bytes]:
    """Files of a machine that has these."""
    devices: dict[str, str | bytes] = {f"dev/{name}": data for name, data in disks.items()}
    return (
        devices
        | {f"sys/class/block/{name}": "" for name in disks}
        | dict.fromkeys(("dev/dm-0", "dev/dm-1", "dev/dm-2"), "")
    )


def measuring() -> dict[str, str | bytes]:
    """A machine with a TPM, whose line says that the disks are to be measured."""
    return {
        **COMMON,
        **block_devices(
            {"vda": disk("root"), "vdb": disk("application"), "vdc": disk("model"), "vdd": START}
        ),
        "dev/tpm0": "",
        "dev/tpmrm0": "",
        "run/cloister/start": "",
        "proc/cmdline": f"{FIRST} {ROOT_ARGUMENT} cloister.application=measured "
        "cloister.model=measured\n",
        "sys/kernel/security/tpm0/binary_bios_measurements": "the firmware's log",
    }


def pinning() -> dict[str, str | bytes]:
    """A machine without one, whose measured line names each disk."""
    line = " ".join((FIRST, *(f"cloister.{kind}={one.argument()}" for kind, one in DISKS.items())))
    files = measuring()
    del files["dev/tpm0"], files["dev/tpmrm0"]
    del files["dev/vdd"], files["sys/class/block/vdd"], files["run/cloister/start"]
    del files["sys/kernel/security/tpm0/binary_bios_measurements"]
    return {
        **files,
        "proc/cmdline": line + "\n",
        "etc/cmdline": line + "\n",
        "dev/sev-guest": "",
        "sys/kernel/config/tsm/report/cloister/inblob": "",
        "sys/kernel/config/tsm/report/cloister/outblob": "",
        "sys/class/virtio-ports/vport1p1/name": "cloister.operator\n",
        "dev/vport1p1": "",
        "dev/virtio-ports/cloister.operator": "",
    }


def enclave() -> dict[str, str | bytes]:
    """A Nitro enclave: a ramdisk, a security module and a parent."""
    line = (
        f"{FIRST} cloister.platform=nitro {ROOT_ARGUMENT} cloister.application=ramdisk "
        "cloister.model=ramdisk\n"
    )
    return {
        **COMMON,
        **block_devices({"loop0": disk("root")}),
        "proc/cmdline": line,
        "etc/cmdline": line,
        "dev/nsm": "",
        "dev/parent": b"\xb7",
        "dev/hwrng": bytes(range(256)),
        "dev/urandom": "",
        "dev/loop-control": "",
        "sys/class/misc/hw_random/rng_current": "nsm-hwrng\n",
        "ramdisk/root.img": disk("root"),
        "ramdisk/application/command": "",
        "ramdisk/model/model.gguf": "",
        "sysroot/application/interface.conf": "",
    }


def compile_machine(folder: Path) -> Path:
    """The init with `init_machine.c` for a kernel."""
    return compile_harness(folder, PROGRAM.read_text(), *SOURCES, instead=_INSTEAD)


def write_machine(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """What the guest sees, as a folder; a name with a slash at its end is a folder too."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
            continue
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def lines(program: Path, root: Path, *failing: int) -> list[str]:
    """What the init asks of the kernel, until it ends; `failing` is a line, and its error."""
    done = subprocess.run(
        [program, root, *map(str, failing)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, "a machine is switched off or restarted, and nothing else"
    found = done.stdout.splitlines()
    assert found[-1].startswith("reboot ")
    return found


MACHINES: Final = {"measuring": measuring, "pinning": pinning, "enclave": enclave}
WORKER: Final = (
    "child: exec /opt/cloister/bin/python /opt/cloister/bin/python -I /application/start.py |"
    " PATH=/usr/bin:/usr/sbin LANG=C.UTF-8 HOME=/run/cloister TMPDIR=/run/cloister"
)
BOOT_LOG: Final = b"the firmware's log"
RULES: Final = (
    "child: exec /usr/sbin/nft /usr/sbin/nft -f /application/nftables.conf |"
    " PATH=/usr/sbin:/usr/bin"
)
OFF: Final = "reboot 4321fedc"
AGAIN: Final = "reboot 1234567"


@dataclass(frozen=True, slots=True)
class Machine:
    root: Path
    told: list[str]
    """What the init asks of it where all goes well."""


def reason(told: list[str]) -> str:
    """Why a machine ended that never came to its worker."""
    assert WORKER not in told
    ((why,),) = [re.findall(r"say power off: (.*) \(errno", line) for line in told[-2:-1]]
    return str(why)


def ends(
    program: Path,
    folder: Path,
    kind: str,
    changes: Mapping[str, str | bytes | None],
) -> str:
    """Why a machine with other files ends; None is a file that is not there."""
    files = MACHINES[kind]()
    (folder / "good").mkdir()
    assert WORKER in lines(program, write_machine(folder / "good", files))
    changed = {name: said for name, said in {**files, **changes}.items() if said is not None}
    (folder / "changed").mkdir()
    return reason(lines(program, write_machine(folder / "changed", changed)))


def extended(pcr: int, data: bytes) -> str:
    """TPM2_PCR_Event under an empty password (TPM 2.0 Library, Part 3 section 22.3)."""
    session = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", pcr, len(session)) + session + struct.pack(">H", len(data)) + data
    return f"write /dev/tpm0 {(struct.pack('>HII', 0x8002, 10 + len(body), 0x13C) + body).hex()}"
