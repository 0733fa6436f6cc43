"""The system-call filter of the managed profile: everything but what no engine needs.

Large engines start programs, threads and compilers, and talk to a GPU's driver, so an allow-list
would be a guess that breaks with the next release. This one refuses by name what reaches the
kernel's less-trodden parts, other processes, or a way around the namespaces: new namespaces,
mounts, tracing, keyrings, io_uring, BPF, performance counters, modules, clocks, raw handles. Of
sockets it leaves unix and internet ones (the network namespace holds nothing but a loopback).
It is one filter, loaded by bubblewrap before anything inside runs.

Linux ``Documentation/userspace-api/seccomp_filter.rst``; numbers from
``arch/x86/entry/syscalls/syscall_64.tbl`` and ``include/uapi/asm-generic/unistd.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from cloister.engine.seccomp import Arch

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_EPERM: Final = 0x00050001
_ENOSYS: Final = 0x00050026

_X32: Final = 0x40000000
"""Bit of the x32 calls, which would be the same calls by other numbers."""

# name: (x86_64, aarch64); None where the architecture has no such call.
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # other namespaces, other roots
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    # files by other than their names
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # parts of the kernel with a history
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_secret": (447, 447),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "sysfs": (139, None),
    "seccomp": (317, 277),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_CLONE: Final = (56, 220)
_CLONE3: Final = (435, 435)
_SOCKET: Final = (41, 198)
_IOCTL: Final = (16, 29)
_MADVISE: Final = (28, 233)
_PRCTL: Final = (157, 167)
_GETSOCKOPT: Final = (55, 209)

_CLONE_NEW: Final = 0x7E020000 | 0x00000080  # every CLONE_NEW* flag
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE: Final = 0
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into a terminal, or pasting
# Merging equal pages with other processes' shows in its timing what those hold.
_MADV_MERGEABLE: Final = 12
_PR_SET_MEMORY_MERGE: Final = 67
_SO_PEERPIDFD: Final = 77  # a handle on the worker, from the connection that it made

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K


def assemble(arch: Arch, *, interfaces: bool = False) -> bytes:
    """Return the filter as an array of ``struct sock_filter`` (8 bytes each, native order).

    `interfaces` leaves NETLINK_ROUTE, by which NCCL and Gloo list the network's interfaces; in
    this sandbox they find a loopback, and have no capability to change it.
    """
    program = [_step(_LOAD, 4), _step(_EQUAL, arch, 1, 0), _return(_KILL), _step(_LOAD, 0)]
    if arch is Arch.X86_64:
        program += [_step(_ANY_BIT, _X32, 0, 1), _return(_EPERM)]
    for numbers in REFUSED.values():
        number = _of(numbers, arch)
        if number is not None:
            program += [_step(_EQUAL, number, 0, 1), _return(_EPERM)]
    # Its flags lie in memory, where no filter can look; glibc falls back to clone.
    program += [_step(_EQUAL, _of(_CLONE3, arch) or 0, 0, 1), _return(_ENOSYS)]
    program += _block(
        _of(_CLONE, arch),
        [_step(_LOAD, _argument(0)), _step(_ANY_BIT, _CLONE_NEW, 0, 1), _return(_EPERM)],
    )
    for numbers, argument, values in (
        (_IOCTL, 1, (_TIOCSTI, _TIOCLINUX)),
        (_MADVISE, 2, (_MADV_MERGEABLE,)),
        (_PRCTL, 0, (_PR_SET_MEMORY_MERGE,)),
        (_GETSOCKOPT, 2, (_SO_PEERPIDFD,)),
    ):
        program += _block(
            _of(numbers, arch), [_step(_LOAD, _argument(argument)), *_refused(values)]
        )
    program += _block(_of(_SOCKET, arch), _socket(interfaces=interfaces), otherwise=_EPERM)
    program.append(_return(_ALLOW))
    return b"".join(program)


def _socket(*, interfaces: bool) -> list[bytes]:
    steps = [_step(_LOAD, _argument(0))]
    for family in (_AF_UNIX, _AF_INET, _AF_INET6):
        steps += [_step(_EQUAL, family, 0, 1), _return(_ALLOW)]
    if interfaces:
        steps += [
            _step(_EQUAL, _AF_NETLINK, 0, 3),
            _step(_LOAD, _argument(2)),
            _step(_EQUAL, _NETLINK_ROUTE, 0, 1),
            _return(_ALLOW),
        ]
    return steps


def _refused(values: Iterable[int]) -> list[bytes]:
    return [step for value in values for step in (_step(_EQUAL, value, 0, 1), _return(_EPERM))]


def _block(number: int | None, steps: list[bytes], *, otherwise: int = _ALLOW) -> list[bytes]:
    """Steps for one call, entered with its number loaded, and left with a verdict."""
    body = [*steps, _return(otherwise)]
    return [_step(_EQUAL, number or 0, 0, len(body)), *body]


def _of(numbers: tuple[int | None, int | None], arch: Arch) -> int | None:
    return numbers[0] if arch is Arch.X86_64 else numbers[1]


def _argument(index: int) -> int:
    """Where the low half of an argument lies in ``struct seccomp_data``, little-endian.

    The kernel looks at no more of any argument that is tested here.
    """
    return 16 + 8 * index


def _return(verdict: int) -> bytes:
    return _step(_RETURN, verdict)


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
