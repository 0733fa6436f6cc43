"""The managed profile's filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import struct

import pytest

from cloister.engine.managed_seccomp import REFUSED, assemble
from cloister.engine.seccomp import NUMBERS, Arch

ALLOWED, KILLED, REFUSED_IT, MISSING = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURES = list(Arch)


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Run the filter over ``struct seccomp_data``."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x45:
            at += yes if accumulator & value else no
        elif code == 0x06:
            return int(value)
        else:
            raise AssertionError(code)


def number(name: str, arch: Arch, table: dict[str, tuple[int | None, int | None]]) -> int | None:
    return table[name][0 if arch is Arch.X86_64 else 1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_named_is_refused_and_the_rest_allowed(arch: Arch) -> None:
    program = assemble(arch)
    for name in REFUSED:
        found = number(name, arch, REFUSED)
        if found is not None:
            assert verdict(program, arch, found) == REFUSED_IT, name
    for name in ("read", "write", "execve", "openat", "mmap", "futex", "connect", "epoll_create1"):
        found = (
            number(name, arch, NUMBERS)
            if name in NUMBERS
            else {0: 42, 1: 203}[arch != ARCHITECTURES[0]]
        )
        assert found is not None
        assert verdict(program, arch, found) == ALLOWED, name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_another_architecture_and_the_second_set_of_numbers_lead_nowhere(arch: Arch) -> None:
    program = assemble(arch)
    assert verdict(program, 0x40000003, 1) == KILLED  # i386
    if arch is Arch.X86_64:
        for found in (0, 41, 59, 101):
            assert verdict(program, arch, 0x40000000 | found) == REFUSED_IT


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_processes_and_threads_are_made_without_new_namespaces(arch: Arch) -> None:
    program = assemble(arch)
    clone = number("clone", arch, NUMBERS) or 0
    clone3 = number("clone3", arch, NUMBERS) or 0
    assert verdict(program, arch, clone, 17) == ALLOWED  # fork
    assert verdict(program, arch, clone, 0x3D0F00) == ALLOWED  # a thread
    for flag in (
        0x10000000,
        0x20000,
        0x2000000,
        0x4000000,
        0x8000000,
        0x20000000,
        0x40000000,
        0x80,
    ):
        assert verdict(program, arch, clone, flag | 17) == REFUSED_IT
    assert verdict(program, arch, clone3, 1) == MISSING


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_unix_and_internet_sockets_are_made(arch: Arch) -> None:
    socket = number("socket", arch, NUMBERS) or 0
    program = assemble(arch)
    for family in range(64):
        expected = ALLOWED if family in (1, 2, 10) else REFUSED_IT
        assert verdict(program, arch, socket, family, 1, 0) == expected, family
    listing = assemble(arch, interfaces=True)
    assert verdict(listing, arch, socket, 16, 3, 0) == ALLOWED  # NETLINK_ROUTE
    for protocol in (4, 9, 12, 15, 16):
        assert verdict(listing, arch, socket, 16, 3, protocol) == REFUSED_IT
    assert verdict(listing, arch, socket, 17, 3, 0) == REFUSED_IT
    assert verdict(listing, arch, socket, 1, 1, 0) == ALLOWED


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_single_uses_of_common_calls_are_refused(arch: Arch) -> None:
    program = assemble(arch)
    ioctl, madvise, prctl = (
        number(name, arch, NUMBERS) or 0 for name in ("ioctl", "madvise", "prctl")
    )
    assert verdict(program, arch, ioctl, 0, 0x5401) == ALLOWED
    assert verdict(program, arch, ioctl, 0, 0x5412) == REFUSED_IT
    assert verdict(program, arch, ioctl, 0, 0x541C) == REFUSED_IT
    assert verdict(program, arch, madvise, 0, 0, 4) == ALLOWED
    assert verdict(program, arch, madvise, 0, 0, 12) == REFUSED_IT
    assert verdict(program, arch, prctl, 15) == ALLOWED
    assert verdict(program, arch, prctl, 67) == REFUSED_IT
    getsockopt = number("getsockopt", arch, NUMBERS) or 0
    assert verdict(program, arch, getsockopt, 3, 1, 4) == ALLOWED
    assert verdict(program, arch, getsockopt, 3, 1, 77) == REFUSED_IT
