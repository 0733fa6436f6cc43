"""Self-restriction with Landlock: what paths a process may still touch.

Runs inside the sandbox, so it imports the standard library only. Linux
``Documentation/userspace-api/landlock.rst`` and ``include/uapi/linux/landlock.h``; the system
calls have the same numbers on every architecture. Landlock lies over the mount namespace: it
also takes away making files in the one writable place (only a socket may be made there),
executing anything, TCP, abstract unix sockets of others and signals to others.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_RULE_PATH_BENEATH: Final = 1
_VERSION_FLAG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

# LANDLOCK_ACCESS_FS_*
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
MAKE_SOCK: Final = 1 << 9
TRUNCATE: Final = 1 << 14
IOCTL_DEVICE: Final = 1 << 15
OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
MAKE_DEVICES: Final = 1 << 6 | 1 << 11  # character and block
"""Making device nodes; no capability allows it anyway."""
ALL: Final = 0xFFFF
_FILESYSTEM: Final = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_NETWORK: Final = ((4, 0x3),)  # bind and connect TCP
_SCOPE: Final = ((6, 0x3),)  # abstract unix sockets, signals


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def abi() -> int:
    """Return this kernel's Landlock ABI version, 0 where there is none."""
    return max(0, _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


def layers(version: int) -> tuple[str, ...]:
    """Name what a kernel with ABI `version` can enforce."""
    return tuple(
        name
        for name, since in (("landlock-files", 1), ("landlock-tcp", 4), ("landlock-scope", 6))
        if version >= since
    )


def _bits(table: tuple[tuple[int, int], ...], version: int) -> int:
    return sum(bits for since, bits in table if version >= since)


def restrict(*, readable: Iterable[str], sockets_in: Iterable[str]) -> int:
    """Restrict this thread and all it starts; return the ABI version, 0 if there is none.

    Files below `readable` may be read, a unix socket may be made in `sockets_in`; everything
    else that Landlock knows is refused. Call it while the process has one thread. OSError if
    the kernel has Landlock but refuses.
    """
    return enforce(
        [
            *((path, READ_FILE | READ_DIR) for path in readable),
            *((path, MAKE_SOCK) for path in sockets_in),
        ]
    )


def enforce(rules: Iterable[tuple[str, int]], *, tcp: bool = False) -> int:
    """As `restrict`, for any rights: each rule is a path and what is allowed beneath it.

    With `tcp` ports are left to the network namespace. Rights that this kernel's Landlock does
    not know yet are left out.
    """
    version = abi()
    if version == 0:
        return 0
    filesystem = _bits(_FILESYSTEM, version)
    attributes = struct.pack("=Q", filesystem)
    if version >= 4:
        attributes += struct.pack("=Q", 0 if tcp else _bits(_NETWORK, version))
    if version >= 6:
        attributes += struct.pack("=Q", _bits(_SCOPE, version))
    ruleset = _checked(_syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for path, access in rules:
            _allow(ruleset, path, access & filesystem)
        libc = ctypes.CDLL(None, use_errno=True)
        zero = ctypes.c_ulong(0)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero))
        _checked(_syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - no pathlib in here: it costs start-up time
            access &= OF_FILES
        rule = struct.pack("=Qi", access, descriptor)
        _checked(_syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
