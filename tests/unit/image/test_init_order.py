"""The guest's init, on machines of files: in which order it asks what of the kernel, and with which
rights the worker runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.init_harness import needs_compiler
from support.init_machine import (
    BOOT_LOG,
    DISKS,
    FIRST,
    MACHINES,
    ROOT_ARGUMENT,
    RULES,
    WORKER,
    Machine,
    extended,
    lines,
    measuring,
    write_machine,
)

pytestmark = needs_compiler

KERNEL: Final = [
    "mount proc /proc proc nosuid,nodev,noexec",
    "mount sysfs /sys sysfs nosuid,nodev,noexec",
    "mount devtmpfs /dev devtmpfs nosuid,noexec",
    "mount securityfs /sys/kernel/security securityfs nosuid,nodev,noexec",
    "mount tmpfs /run tmpfs nosuid,nodev mode=0755,size=25%",
]
NO_MORE_MODULES: Final = [
    "load /modules/01-verity.ko",
    "write /proc/sys/kernel/modules_disabled 1",
]
MOVED: Final = [
    *(f"mount {one} /sysroot{one} - move" for one in ("/proc", "/sys", "/dev", "/run")),
    *("chdir /sysroot", "mount . / - move", "chroot .", "chdir /"),
]
LAST: Final = [RULES, "mount configfs /sys/kernel/config configfs nosuid,nodev,noexec", WORKER]
ORDERED: Final = (
    r"mount |verity |load |write /dev/tpm0|chdir|chroot|child: exec|entropy|loop|write socket"
    r"|write /proc/sys/kernel/modules_disabled"
)


def ordered(machine: Machine) -> list[str]:
    return [line for line in machine.told if re.match(ORDERED, line)]


def opened(kind: str, device: str, mapped: int, options: str) -> list[str]:
    """A disk under dm-verity, of which a wrong block is a panic."""
    one = DISKS[kind]
    where = "/sysroot" if kind == "root" else f"/sysroot/{kind}"
    return [
        f"verity create {kind} ro",
        f"verity load {kind} ro 1 0 {one.data_blocks * 8} verity 1 {device} {device} 4096 4096"
        f" {one.data_blocks} {one.hash_start} sha256 {one.root_hash} {one.salt}"
        " 1 panic_on_corruption",
        f"verity start {kind} ro",
        f"mount /dev/dm-{mapped} {where} {one.fs} {options}",
    ]


def test_a_disk_is_measured_then_its_register_closed_and_only_then_read(
    machines: Mapping[str, Machine],
) -> None:
    assert ordered(machines["measuring"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        *opened("root", "/dev/vda", 0, "ro,nosuid,nodev"),
        extended(14, DISKS["application"].line()),
        extended(14, bytes(4)),
        *opened("application", "/dev/vdb", 1, "ro,nosuid,nodev,noexec"),
        extended(15, DISKS["model"].line()),
        extended(15, bytes(4)),
        *opened("model", "/dev/vdc", 2, "ro,nosuid,nodev,noexec"),
        *MOVED,
        *LAST,
    ]


def test_a_line_that_names_each_disk_needs_no_measuring(machines: Mapping[str, Machine]) -> None:
    assert ordered(machines["pinning"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        *opened("root", "/dev/vda", 0, "ro,nosuid,nodev"),
        *opened("application", "/dev/vdb", 1, "ro,nosuid,nodev,noexec"),
        *opened("model", "/dev/vdc", 2, "ro,nosuid,nodev,noexec"),
        *MOVED,
        *LAST,
    ]


def test_an_enclave_has_random_numbers_before_anything_and_a_ramdisk_for_disks(
    machines: Mapping[str, Machine],
) -> None:
    folders = [
        line
        for kind in ("application", "model")
        for line in (
            f"mount /ramdisk/{kind} /sysroot/{kind} - bind",
            f"mount - /sysroot/{kind} - ro,nosuid,nodev,noexec,bind,remount",
        )
    ]
    assert ordered(machines["enclave"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        f"entropy 2048 bits {bytes(range(256)).hex()}",
        "write socket b7",
        "loop free",
        "loop /dev/loop0 /ramdisk/root.img ro",
        *opened("root", "/dev/loop0", 0, "ro,nosuid,nodev"),
        *folders,
        *MOVED,
        *LAST,
    ]
    # Family, port 9000 and the parent's address; then for how long it may take to answer.
    assert "connect 28000000282300000300000000000000" in machines["enclave"].told
    assert "socket option 14000000000000000000000000000000" in machines["enclave"].told


def test_a_disk_that_the_line_names_is_measured_where_there_is_a_tpm(
    program: Path, tmp_path: Path
) -> None:
    """The same registers as with `measured`; and closed ones where there is no disk."""
    named = " ".join((FIRST, *(f"cloister.{kind}={one.argument()}" for kind, one in DISKS.items())))
    told = lines(program, write_machine(tmp_path, {**measuring(), "proc/cmdline": named}))
    found = [line for line in told if line.startswith("write /dev/tpm0")]
    assert found == [
        extended(14, DISKS["application"].line()),
        extended(14, bytes(4)),
        extended(15, DISKS["model"].line()),
        extended(15, bytes(4)),
    ]
    for line in (f"{FIRST} {ROOT_ARGUMENT}", f"{FIRST} {ROOT_ARGUMENT} cloister.model=none"):
        told = lines(program, write_machine(tmp_path, {"proc/cmdline": line}))
        found = [line for line in told if line.startswith("write /dev/tpm0")]
        assert found == [extended(14, bytes(4)), extended(15, bytes(4))]
        assert not any("/sysroot/model" in line for line in told)


SETTINGS: Final = {
    "kernel/kexec_load_disabled": "1",
    "kernel/yama/ptrace_scope": "3",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/core_pattern": "|/nonexistent",
    "fs/suid_dumpable": "0",
    "kernel/sysrq": "0",
    "kernel/dmesg_restrict": "1",
    "kernel/printk": "0",
    "kernel/kptr_restrict": "2",
    "kernel/perf_event_paranoid": "3",
    "kernel/panic_on_oops": "1",
    "vm/unprivileged_userfaultfd": "0",
    "net/core/bpf_jit_harden": "2",
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}


@pytest.mark.parametrize("kind", MACHINES)
def test_what_the_kernel_may_no_longer_do_before_anything_comes_in(
    machines: Mapping[str, Machine], kind: str
) -> None:
    told = machines[kind].told
    written = {
        name: (number, value)
        for number, line in enumerate(told)
        for name, value in re.findall(r"^write /proc/sys/(\S+) (.*)", line)
    }
    assert {name: value for name, (_, value) in written.items()} == {
        "kernel/modules_disabled": "1",
        **SETTINGS,
    }
    rules, up = told.index(RULES), told.index("flags of lo 1")
    assert max(number for number, _ in written.values()) < rules < up
    assert told.index("say network rules") < up


@pytest.mark.parametrize("kind", MACHINES)
def test_the_worker_is_an_ordinary_user_without_rights_or_files(
    machines: Mapping[str, Machine], kind: str
) -> None:
    told = machines[kind].told
    rights = [line.removeprefix("child: ") for line in told if line.startswith("child: ")]
    assert rights[rights.index("setsid") :] == [
        *("setsid", "dup2 - 0", "dup2 /dev/console 1", "dup2  2"),
        *(f"close {file}" for file in range(3, 64)),
        "umask 0077",
        *(f"prctl 24 {capability}" for capability in range(64)),
        *("limit 4 1 1", "limit 8 -1 -1", "limit 7 65536 65536"),
        *("setgroups 0", "setresgid 990 990 990", "setresuid 990 990 990", "prctl 38 1"),
        WORKER.removeprefix("child: "),
    ]
    assert "mkdir /run/cloister 0700" in told


def given(told: list[str]) -> list[str]:
    found = [re.findall(r"^give (\S+) 990 990$", line) for line in told if "give" in line]
    return sorted(name for names in found for name in names)


def test_what_the_worker_is_given(machines: Mapping[str, Machine]) -> None:
    """No disk, nothing of the kernel's but what makes evidence, and the ports."""
    assert given(machines["measuring"].told) == [
        *("/dev/tpm0", "/dev/tpmrm0", "/run/cloister", "/run/cloister/start")
    ]
    report = "/sys/kernel/config/tsm/report/cloister"
    assert given(machines["pinning"].told) == [
        *("/dev/sev-guest", "/dev/vport1p1", "/run/cloister"),
        *(f"{report}/inblob", f"{report}/outblob"),
    ]
    assert given(machines["enclave"].told) == ["/dev/nsm", "/run/cloister"]
    copied = machines["measuring"].told
    assert "open /run/cloister/boot-log new 0444" in copied
    assert f"write /run/cloister/boot-log {BOOT_LOG.hex()}" in copied
    assert "open /run/cloister/start new 0400" in copied
    assert "link /dev/virtio-ports/cloister.operator ../vport1p1" in machines["pinning"].told
