"""The system-call filters, run in a small BPF machine for both architectures."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from cloister.engine import landlock
from cloister.engine.seccomp import (
    BOOT_RULES,
    NUMBERS,
    RUN_RULES,
    Arch,
    Rule,
    assemble,
    this_arch,
)

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
THREAD = 0x003D0F00  # what glibc's pthread_create asks of clone


def decide(program: bytes, number: int, arch: int, *arguments: int) -> int:
    """Execute a filter on one system call (struct seccomp_data) and return its verdict."""
    padded = [*arguments, *([0] * (6 - len(arguments)))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *(value & (1 << 64) - 1 for value in padded))
    accumulator = at = 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x06:
            return int(value)
        else:
            raise AssertionError(f"unexpected instruction {code:#x}")


def verdict(rules: tuple[Rule, ...], arch: Arch, name: str, *arguments: int) -> int:
    number = NUMBERS[name][0 if arch is Arch.X86_64 else 1]
    assert number is not None
    return decide(assemble(rules, arch), number, arch, *arguments)


ARCHES = pytest.mark.parametrize("arch", list(Arch))


@ARCHES
def test_what_is_listed_is_allowed_and_all_else_is_not(arch: Arch) -> None:
    index = 0 if arch is Arch.X86_64 else 1
    for rules in (RUN_RULES, BOOT_RULES):
        program = assemble(rules, arch)
        plain = {NUMBERS[rule.name][index] for rule in rules if rule.argument is None}
        guarded = {NUMBERS[rule.name][index] for rule in rules if rule.argument is not None}
        clone3 = NUMBERS["clone3"][index]
        for number in range(600):
            if number in plain:
                assert decide(program, number, arch) == ALLOW
            elif number == clone3:
                assert decide(program, number, arch) == ENOSYS
            elif number not in guarded:
                assert decide(program, number, arch) == EPERM


@ARCHES
def test_a_foreign_architecture_ends_the_process(arch: Arch) -> None:
    number = NUMBERS["read"][0 if arch is Arch.X86_64 else 1]
    assert number is not None
    program = assemble(RUN_RULES, arch)
    assert decide(program, number, arch) == ALLOW
    for other in (0x40000003, 0xC00000B7 if arch is Arch.X86_64 else 0xC000003E, 0):
        assert decide(program, number, other) == KILL


def test_x32_calls_are_refused() -> None:
    program = assemble(RUN_RULES, Arch.X86_64)
    assert decide(program, 0, Arch.X86_64) == ALLOW
    assert decide(program, 0x40000000, Arch.X86_64) == EPERM


@ARCHES
def test_threads_but_no_processes_and_no_namespaces(arch: Arch) -> None:
    for rules in (RUN_RULES, BOOT_RULES):
        assert verdict(rules, arch, "clone", THREAD) == ALLOW
        assert verdict(rules, arch, "clone", 17) == EPERM  # fork: SIGCHLD alone
        assert verdict(rules, arch, "clone", 0x4111) == EPERM  # vfork
        for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000):
            assert verdict(rules, arch, "clone", THREAD | namespace) == EPERM
        assert verdict(rules, arch, "clone", THREAD | 0x40000000 | 0x80) == EPERM


@ARCHES
def test_unix_sockets_only(arch: Arch) -> None:
    for rules in (RUN_RULES, BOOT_RULES):
        assert verdict(rules, arch, "socket", 1, 1) == ALLOW
        for family in (0, 2, 10, 16, 17, 38, 40):
            assert verdict(rules, arch, "socket", family, 1) == EPERM


@ARCHES
def test_files_are_opened_for_reading_only(arch: Arch) -> None:
    assert verdict(RUN_RULES, arch, "openat", 0, 0, 0o2000000) == ALLOW
    for flags in (1, 2, 0o100, 0o1000, 0o2000, 0o20200000):
        assert verdict(RUN_RULES, arch, "openat", 0, 0, flags) == EPERM
        assert verdict(BOOT_RULES, arch, "openat", 0, 0, flags) == ALLOW
    if arch is Arch.X86_64:
        assert verdict(RUN_RULES, arch, "open", 0, 0) == ALLOW
        assert verdict(RUN_RULES, arch, "open", 0, 1) == EPERM


@ARCHES
@pytest.mark.parametrize("name", ["mmap", "mprotect"])
def test_no_memory_is_writable_and_executable(arch: Arch, name: str) -> None:
    for protection in (0, 1, 3):
        assert verdict(RUN_RULES, arch, name, 0, 0, protection) == ALLOW
    for protection in (6, 7):
        assert verdict(RUN_RULES, arch, name, 0, 0, protection) == EPERM
    # Executable from the start, as files are mapped; not afterwards.
    later = EPERM if name == "mprotect" else ALLOW
    assert verdict(RUN_RULES, arch, name, 0, 0, 5) == later


@ARCHES
def test_memory_is_private_counted_and_of_ordinary_pages(arch: Arch) -> None:
    private, shared_file = 0x22, 0x01
    assert verdict(RUN_RULES, arch, "mmap", 0, 0, 3, private) == ALLOW
    assert verdict(RUN_RULES, arch, "mmap", 0, 0, 1, shared_file) == ALLOW
    for flags in (0x21, 0x23, private | 0x40000, private | 0x100):
        assert verdict(RUN_RULES, arch, "mmap", 0, 0, 3, flags) == EPERM
    assert verdict(RUN_RULES, arch, "madvise", 0, 0, 4) == ALLOW
    assert verdict(RUN_RULES, arch, "madvise", 0, 0, 12) == EPERM


@ARCHES
def test_sockets_stream_to_whoever_connected_and_run_no_programs(arch: Arch) -> None:
    for kind in (1, 1 | 0o2000000, 1 | 0o4000):
        assert verdict(RUN_RULES, arch, "socket", 1, kind) == ALLOW
    for kind in (2, 3, 5, 2 | 0o2000000):
        assert verdict(RUN_RULES, arch, "socket", 1, kind) == EPERM
    assert verdict(RUN_RULES, arch, "sendto", 3, 9, 9, 0, 0, 0) == ALLOW
    assert verdict(RUN_RULES, arch, "sendto", 3, 9, 9, 0, 9, 16) == EPERM
    for option in (1, 2, 20, 21, 66, 67):
        assert verdict(RUN_RULES, arch, "setsockopt", 3, 1, option) == ALLOW
    for option in (0, 3, 26, 50, 51, 52, 76):
        assert verdict(RUN_RULES, arch, "setsockopt", 3, 1, option) == EPERM
    assert verdict(RUN_RULES, arch, "getsockopt", 3, 1, 17) == ALLOW
    assert verdict(RUN_RULES, arch, "getsockopt", 3, 1, 77) == EPERM


def test_the_engine_gets_nothing_that_only_starting_needs() -> None:
    run = {rule.name for rule in RUN_RULES}
    assert run < {rule.name for rule in BOOT_RULES}
    for name in ("execve", "prctl", "seccomp", "sendmsg", "ioctl", "prlimit64", "wait4"):
        assert name not in run
    assert not {rule.name for rule in BOOT_RULES} & {"connect", "ptrace", "clone3", "memfd_create"}


@pytest.mark.parametrize(
    ("header", "index", "prefix"),
    [
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0, "__NR_"),
        ("/usr/include/asm-generic/unistd.h", 1, "__NR(?:3264)?_"),
    ],
)
def test_numbers_are_the_kernel_headers(header: str, index: int, prefix: str) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    text = Path(header).read_text()
    found = dict(re.findall(rf"#define {prefix}(\w+) (\d+)", text))
    names = {"newfstatat": "fstatat", "fadvise64": "fadvise64"} if index else {}
    for name, numbers in NUMBERS.items():
        if (number := numbers[index]) is not None:
            assert int(found[names.get(name, name)]) == number, name


def test_machines_without_a_table_are_named() -> None:
    assert this_arch("x86_64") is Arch.X86_64
    assert this_arch("aarch64") is Arch.AARCH64
    assert this_arch("riscv64") is None


def test_landlock_layers_by_kernel() -> None:
    assert landlock.layers(0) == ()
    assert landlock.layers(1) == ("landlock-files",)
    assert landlock.layers(4) == ("landlock-files", "landlock-tcp")
    assert landlock.layers(7) == ("landlock-files", "landlock-tcp", "landlock-scope")
