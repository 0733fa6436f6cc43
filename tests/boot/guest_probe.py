"""Hostile code in the worker's place inside a booted guest: tries everything, says what it got.

Runs as the application disk's ``command``, with the rights of the worker itself, which are more
than an engine ever has; then once more as the engine, in its sandbox, as the worker starts it.
Prints one line: ``PROBE`` and a JSON object that maps each try to the error it met, null where it
got through.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEIGHBOUR, ELSEWHERE = "10.0.2.2", "198.51.100.7"
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000


def system_call(number: int, *arguments: int) -> int:
    """x86-64; OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(*(ctypes.c_long(value) for value in (number, *arguments))))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def connect(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as made:
        made.settimeout(2)
        made.connect((address, port))


def send(address: str, port: int, data: bytes) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.sendto(data, (address, port))


def ping(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as made:
        made.sendto(b"\x08\0\0\0\0\0\0\0" + bytes(8), (address, 0))


def reply_to_a_forged_peer() -> None:
    """From the port that people are let in on, to somebody who never asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", 8440))
        made.sendto(b"an answer", (NEIGHBOUR, 40000))
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("0.0.0.0", 8440))
        made.settimeout(2)
        made.connect((NEIGHBOUR, 40000))


def vsock() -> None:
    with socket.socket(socket.AF_VSOCK) as made:
        made.settimeout(2)
        made.connect((2, 1234))


def as_root_of_a_namespace(inside: Callable[[], object]) -> None:
    """As root, but of a user namespace of one's own; in a child, for there is no way back."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            system_call(272, NEW_USER)  # unshare
            inside()
        except OSError as error:
            status = error.errno or errno.EIO
        os.write(writing, bytes([status]))
        os._exit(0)
    os.waitpid(child, 0)
    (status,) = os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    if status:
        raise OSError(status, os.strerror(status))


def raw_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
        made.sendto(b"\x45" + bytes(19), (NEIGHBOUR, 0))


def packet_socket() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.bind(("eth0", 0))
        made.send(b"\xff" * 6 + b"\x52\x54\0\x12\x34\x56\x88\xb5" + b"leak")


def change_rules() -> None:
    """Through netlink, which is what nft does."""
    status = os.spawnv(os.P_WAIT, "/usr/sbin/nft", ["nft", "flush", "ruleset"])
    if status:
        raise PermissionError(errno.EPERM, "nft refuses")


def write(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(descriptor)


def setting(path: str, value: str) -> None:
    Path("/proc/sys", path).write_text(value)


def listed(folder: str) -> list[str]:
    """Names in `folder`; FileNotFoundError where there are none: nothing is mounted there."""
    names = [path.name for path in Path(folder).iterdir()]
    if not names:
        raise FileNotFoundError(errno.ENOENT, "nothing is mounted there")
    return names


def read(path: str) -> None:
    with Path(path).open("rb") as file:
        file.read(1)


NETWORK: dict[str, Callable[[], object]] = {
    "tcp_neighbour": lambda: connect(NEIGHBOUR, 9),
    "tcp_elsewhere": lambda: connect(ELSEWHERE, 443),
    "udp_neighbour": lambda: send(NEIGHBOUR, 9, b"leak"),
    "udp_broadcast": lambda: send("255.255.255.255", 67, b"leak"),
    "udp_multicast": lambda: send("224.0.0.251", 5353, b"leak"),
    "dns": lambda: send("10.0.2.3", 53, b"\0\1\1\0\0\1\0\0\0\0\0\0\4leak\7example\0\0\1\0\1"),
    "metadata_service": lambda: connect("169.254.169.254", 80),
    "fragments": lambda: send(NEIGHBOUR, 9, bytes(20000)),
    "icmp": lambda: ping(NEIGHBOUR),
    "tcp6": lambda: connect("fec0::2", 9),
    "udp6_multicast": lambda: send("ff02::1", 9, b"leak"),
    "forged_peer": reply_to_a_forged_peer,
    "vsock": vsock,
    "raw_socket": raw_socket,
    "packet_socket": packet_socket,
    "raw_socket_as_root_of_a_namespace": lambda: as_root_of_a_namespace(raw_socket),
    "packet_socket_as_root_of_a_namespace": lambda: as_root_of_a_namespace(packet_socket),
    "change_rules": change_rules,
    "change_rules_as_root_of_a_namespace": lambda: as_root_of_a_namespace(change_rules),
}

KERNEL: dict[str, Callable[[], object]] = {
    "load_module": lambda: system_call(313, 0, 0, 0),
    "kexec": lambda: system_call(246, 0, 0, 0, 0),
    "bpf": lambda: system_call(321, 0, 0, 0),
    "perf": lambda: system_call(298, 0, -1, -1, -1, 0),
    "ptrace_init": lambda: system_call(101, 16, 1, 0, 0),
    "ptrace_oneself": lambda: system_call(101, 0, 0, 0, 0),
    "memory_of_init": lambda: read("/proc/1/mem"),
    "kernel_memory": lambda: read("/proc/kcore"),
    "physical_memory": lambda: read("/dev/mem"),
    "kernel_log": lambda: system_call(103, 3, 0, 0),
    "swap_on": lambda: system_call(167, 0, 0),
    "mount": lambda: system_call(165, 0, 0, 0, 0, 0),
    "become_root": lambda: os.setuid(0),
    "reboot": lambda: system_call(169, 0xFEE1DEAD - (1 << 32), 672274793, 0x4321FEDC, 0),
    "debugfs": lambda: listed("/sys/kernel/debug"),
    "modules_again": lambda: setting("kernel/modules_disabled", "0"),
    "core_files": lambda: setting("kernel/core_pattern", "/run/cloister/core"),
    "ptrace_again": lambda: setting("kernel/yama/ptrace_scope", "0"),
    "forwarding": lambda: setting("net/ipv4/ip_forward", "1"),
    "shell": lambda: Path("/bin/sh").stat(),
}

DISKS: dict[str, Callable[[], object]] = {
    **{
        f"write_{name}": lambda path=path: write(path)  # type: ignore[misc]
        for name, path in {
            "root": "/leak",
            "programs": "/usr/bin/leak",
            "package": "/opt/cloister/leak",
            "application": "/application/leak",
            "model": "/model/leak",
            "boot_disk": "/dev/vda",
            "root_disk": "/dev/vdb",
            "mapped_root": "/dev/dm-0",
            "firmware_memory": "/dev/nvram",
        }.items()
    },
    "firmware_variables": lambda: listed("/sys/firmware/efi/efivars"),
}


def tried(probes: dict[str, Callable[[], object]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, probe in probes.items():
        try:
            probe()
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, type(error).__name__)
        else:
            found[name] = None
    return found


def state() -> dict[str, Any]:
    """What the kernel says of itself and of this process."""
    process = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in process if ":\t" in line)
    return {
        "capabilities": [fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")],
        "no_new_privileges": fields["NoNewPrivs"],
        "user": fields["Uid"],
        "lockdown": Path("/sys/kernel/security/lockdown").read_text().strip(),
        "modules_disabled": Path("/proc/sys/kernel/modules_disabled").read_text().strip(),
        "swaps": Path("/proc/swaps").read_text().splitlines()[1:],
        "mounts": [line.split(" ")[:4] for line in Path("/proc/mounts").read_text().splitlines()],
        "programs": sorted([*listed("/usr/bin"), *listed("/usr/sbin")]),
        "redirects": {
            path.parent.name: path.read_text().strip()
            for path in Path("/proc/sys/net/ipv4/conf").glob("*/accept_redirects")
        },
        "addresses": [name for _, name in socket.if_nameindex()],
    }


async def as_the_engine() -> dict[str, Any]:
    """The hostile engine of the sandbox's own tests, in the sandbox that the worker uses."""
    sys.path.insert(0, str(HERE))
    from sandbox_targets import host_targets  # type: ignore[import-not-found]

    from cloister.engine.confined import Program
    from cloister.engine.sandbox import Sandbox

    with tempfile.TemporaryDirectory() as folder, host_targets(Path(folder)) as targets:
        model = Path(targets["model"])
        bare = Program(script=HERE / "sandbox_probe.py", files={"model.gguf": model})
        plain = {**targets, "model": Sandbox().path_of(bare, "model.gguf")}
        del plain["udp"]
        confined = await Sandbox().spawn(replace(bare, arguments=(json.dumps(plain),)))
        try:
            await confined.word()
            reader, writer = await asyncio.open_unix_connection(confined.open_socket("engine.sock"))
            report: dict[str, Any] = json.loads(await reader.read())
            writer.close()
            await writer.wait_closed()
        finally:
            await confined.aclose()
        return report


def main() -> None:
    found = {
        "network": tried(NETWORK),
        "kernel": tried(KERNEL),
        "disks": tried(DISKS),
        "state": state(),
        "engine": asyncio.run(as_the_engine()),
    }
    print("PROBE", json.dumps(found), flush=True)
    time.sleep(1)  # for the last packets to leave, if any do


if __name__ == "__main__":
    main()
