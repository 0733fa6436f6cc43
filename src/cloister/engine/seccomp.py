"""System-call filters, assembled as classic BPF in pure Python.

Runs inside the sandbox, so it imports the standard library only. A filter is an allow-list:
what it does not name answers EPERM, a foreign architecture kills the process (Linux
``Documentation/userspace-api/seccomp_filter.rst``; ``struct seccomp_data`` in
``include/uapi/linux/seccomp.h``). Two filters are laid over each other: `boot_filter`, which
bubblewrap loads just before it executes the interpreter, and `run_filter`, which the
confinement program adds before any code of the engine is loaded. What both allow is allowed.

`run_filter` leaves no way to execute a program, to make a process (threads only), to open a
file for writing, to connect a socket or send to an address, to make any but a unix stream
socket, to attach a program to one, to make memory executable that was written, or to share
memory.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Arch(IntEnum):
    """AUDIT_ARCH_* of ``linux/audit.h``: machine, 64-bit, little-endian."""

    X86_64 = 0xC000003E
    AARCH64 = 0xC00000B7


_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000  # SECCOMP_RET_KILL_PROCESS
_EPERM: Final = 0x00050001
_ENOSYS: Final = 0x00050026  # what makes glibc fall back from clone3 to clone

_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020000 | 0x00000080  # every CLONE_NEW* flag
_AF_UNIX: Final = 1
_SOCK_STREAM: Final = 1
_TYPE_MASK: Final = 0xF  # without SOCK_CLOEXEC and SOCK_NONBLOCK
_EXEC: Final = 0x4  # PROT_EXEC
_WRITE_EXEC: Final = 0x2 | _EXEC  # PROT_WRITE, PROT_EXEC
_SHARED: Final = 0x01  # MAP_SHARED, and a bit of MAP_SHARED_VALIDATE
_SHARED_ANONYMOUS: Final = 0x20 | _SHARED
_HUGE: Final = 0x40000  # MAP_HUGETLB
_GROWS_DOWN: Final = 0x100  # MAP_GROWSDOWN
_MERGEABLE: Final = 12  # MADV_MERGEABLE
_SO_PEERPIDFD: Final = 77
# SO_REUSEADDR, SO_RCVTIMEO, SO_SNDTIMEO (each old and new) and TCP_NODELAY: what servers set
_OPTIONS: Final = (2, 20, 21, 66, 67, 1)
# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND and the bit that is O_TMPFILE's own
_OPEN_FOR_WRITING: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Allow `name` if, where `argument` is given, ``args[argument] & mask == value``.

    Any of `others` is as good as `value`. With `refuse` it is the other way round. Only the
    low 32 bits are compared: the kernel looks at no more of any argument tested here. Of
    several rules with one name all have to be met.
    """

    name: str
    argument: int | None = None
    mask: int = 0xFFFFFFFF
    value: int = 0
    refuse: bool = False
    others: tuple[int, ...] = ()


# Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
# name: (x86_64, aarch64); None where the architecture has no such call.
NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "access": (21, None),
    "arch_prctl": (158, None),
    "bind": (49, 200),
    "brk": (12, 214),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "epoll_create1": (291, 20),
    "execve": (59, 221),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpeername": (52, 205),
    "getpid": (39, 172),
    "getpriority": (140, 141),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "ioctl": (16, 29),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "listen": (50, 201),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "recvfrom": (45, 207),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "wait4": (61, 260),
    "write": (1, 64),
    "writev": (20, 66),
}

#: Seen in a trace of start, generation, refusal and a client that goes away.
_SEEN: Final = (
    "accept4", "bind", "brk", "clock_nanosleep", "close", "exit", "exit_group", "fadvise64",
    "futex", "getdents64", "getpeername", "getsockname", "gettid", "listen",
    "lseek", "munmap", "newfstatat", "poll", "read", "recvfrom", "rseq",
    "rt_sigaction", "rt_sigprocmask", "sched_getaffinity", "set_robust_list",
    "shutdown", "sysinfo",
)  # fmt: skip
#: Not in that trace, but on ways it did not take: clocks without a vDSO, growing of large
#: blocks, reading a model that is not mapped, output, spinning threads, resumed calls, and
#: what other releases of the C library call instead of the above.
_SPARE: Final = (
    "accept", "clock_gettime", "fstat", "getpid", "getrandom", "gettimeofday", "lstat",
    "mremap", "nanosleep", "ppoll", "pread64", "restart_syscall", "rt_sigreturn",
    "sched_yield", "stat", "write", "writev",
)  # fmt: skip
#: For the interpreter's start, bubblewrap's reaper and the act of confining. Never for the engine.
_BOOT_ONLY: Final = (
    "access", "arch_prctl", "close_range", "dup", "epoll_create1", "execve", "faccessat",
    "faccessat2", "fcntl", "fstatfs", "getcwd", "getegid", "geteuid", "getgid", "getpriority",
    "getrlimit", "getuid", "ioctl", "landlock_add_rule", "landlock_create_ruleset",
    "landlock_restrict_self", "mmap", "mprotect", "open", "openat", "prctl", "prlimit64",
    "readlink", "readlinkat", "seccomp", "sendmsg", "set_tid_address", "setpriority",
    "sigaltstack", "statfs", "statx", "uname", "wait4",
)  # fmt: skip

_COMMON: Final = (
    *(Rule(name=name) for name in (*_SEEN, *_SPARE)),
    Rule(name="clone", argument=0, mask=_CLONE_THREAD | _CLONE_NEW, value=_CLONE_THREAD),
    Rule(name="socket", argument=0, value=_AF_UNIX),
    Rule(name="socket", argument=1, mask=_TYPE_MASK, value=_SOCK_STREAM),
    Rule(name="sendto", argument=5, value=0),  # no address: only to whoever connected
    # No packet filters: they are programs that run in the kernel.
    Rule(name="setsockopt", argument=2, value=_OPTIONS[0], others=_OPTIONS[1:]),
    # A handle on the worker's process, for whoever accepted a connection of its.
    Rule(name="getsockopt", argument=2, value=_SO_PEERPIDFD, refuse=True),
    # Pages made equal to others' of their kind: by timing, a look into other processes.
    Rule(name="madvise", argument=2, value=_MERGEABLE, refuse=True),
)
#: What the interpreter needs between bubblewrap's last step and `RUN_RULES`.
BOOT_RULES: Final = (*_COMMON, *(Rule(name=name) for name in _BOOT_ONLY))
#: What the engine needs from its first instruction on.
RUN_RULES: Final = (
    *_COMMON,
    Rule(name="open", argument=1, mask=_OPEN_FOR_WRITING, value=0),
    Rule(name="openat", argument=2, mask=_OPEN_FOR_WRITING, value=0),
    Rule(name="mmap", argument=2, mask=_WRITE_EXEC, value=_WRITE_EXEC, refuse=True),
    # RLIMIT_DATA does not count memory that is shared, or that grows as a stack does; huge pages
    # are taken from a pool of the whole machine.
    Rule(name="mmap", argument=3, mask=_SHARED_ANONYMOUS, value=_SHARED_ANONYMOUS, refuse=True),
    Rule(name="mmap", argument=3, mask=_GROWS_DOWN, value=_GROWS_DOWN, refuse=True),
    Rule(name="mmap", argument=3, mask=_HUGE, value=_HUGE, refuse=True),
    # What is executable comes from a file, as it is: never from memory that was written.
    Rule(name="mprotect", argument=2, mask=_EXEC, value=_EXEC, refuse=True),
)

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _number(name: str, arch: Arch) -> int | None:
    x86_64, aarch64 = NUMBERS[name]
    return x86_64 if arch is Arch.X86_64 else aarch64


def _block(rules: list[Rule], number: int) -> bytes:
    """Instructions that decide about one system call, or fall through to the next block."""
    body = b"".join(_test(rule) for rule in rules if rule.argument is not None)
    body += _instruction(_RETURN, _ALLOW)
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body


def _test(rule: Rule) -> bytes:
    """Instructions that go on if the rule is met, and end the filter otherwise."""
    values = (rule.value, *rule.others)
    # To the instruction after the refusal if met; `refuse` swaps the two ways.
    met, unmet = (0, 1) if rule.refuse else (1, 0)
    tests = [
        _instruction(_EQUAL, value, left + met, 0 if left else unmet)
        for left, value in zip(range(len(values) - 1, -1, -1), values, strict=True)
    ]
    return (
        _instruction(_LOAD, 16 + 8 * (rule.argument or 0))
        + _instruction(_AND, rule.mask)
        + b"".join(tests)
        + _instruction(_RETURN, _EPERM)
    )


def assemble(rules: Iterable[Rule], arch: Arch) -> bytes:
    """Return the filter as an array of ``struct sock_filter`` (8 bytes each, native order).

    Calls that `arch` does not have are left out. On x86_64 the x32 calls carry another number
    and so match nothing.
    """
    program = [
        _instruction(_LOAD, 4),
        _instruction(_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
        _instruction(_EQUAL, _number("clone3", arch) or 0, 0, 1),
        _instruction(_RETURN, _ENOSYS),
    ]
    named: dict[str, list[Rule]] = {}
    for rule in rules:
        named.setdefault(rule.name, []).append(rule)
    for name, its in named.items():
        number = _number(name, arch)
        if number is not None:
            program.append(_block(its, number))
    program.append(_instruction(_RETURN, _EPERM))
    return b"".join(program)


def this_arch(machine: str) -> Arch | None:
    """Return the architecture that ``os.uname().machine`` names, None if it has no table."""
    return {"x86_64": Arch.X86_64, "aarch64": Arch.AARCH64}.get(machine)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes, arch: Arch) -> None:
    """Load `program` for every thread of this process; OSError if the kernel refuses.

    Needs no privilege once no_new_privs is set, which this does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    argument = _Program(len(program) // 8, program)
    number = ctypes.c_long(_number("seccomp", arch) or 0)
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_TSYNC
    if libc.syscall(number, 1, 1, ctypes.byref(argument)) != 0:
        raise OSError(ctypes.get_errno(), "the system-call filter is refused")
