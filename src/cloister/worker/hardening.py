"""What the worker asks of the kernel for itself, before it makes a key.

Linux only. None of this keeps out the host of an ordinary machine; it keeps keys and prompts
out of core files, swap, freed memory and the reach of other processes of the same user. A machine
meant for production should have no swap at all, which the image decides, not this process.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_M_PERTURB: Final = -6
_FILLING: Final = 0xA5


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """What the kernel granted."""

    no_core: bool
    undumpable: bool
    memory_locked: bool
    freed_memory_overwritten: bool


def harden_process(*, lock_memory: bool = True) -> Hardening:
    """No core files, no tracing by equals, files for the owner only, and memory out of swap.

    `RLIMIT_CORE` and the dumpable flag are inherited or reset by what this process starts, as
    the kernel says: the engine's sandbox sets its own. Never raises: what was not granted is
    in the result, for the log.
    """
    os.umask(0o077)
    no_core = forbid_core_files()
    libc = ctypes.CDLL(None, use_errno=True)
    undumpable = libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return Hardening(
        no_core=no_core,
        undumpable=undumpable,
        memory_locked=lock_memory and _lock_memory(libc),
        freed_memory_overwritten=_overwrite_freed(libc),
    )


def forbid_core_files() -> bool:
    """Have the kernel write no core file of this process, and of those it starts; whether it does.

    All that can be asked for in a process that is somebody else's program as well. The limit is
    one byte, which is too little for any file: where ``core_pattern`` names a program, the kernel
    hands it the memory whatever the limit is, but for this one (Linux ``fs/coredump.c``).
    """
    try:
        limit = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    except (OSError, ValueError):
        return False
    return True


def _overwrite_freed(libc: ctypes.CDLL) -> bool:
    """Have glibc fill what is freed (mallopt(3), M_PERTURB).

    Python keeps objects of up to 512 bytes in arenas of its own, which this does not reach.
    """
    try:
        return bool(libc.mallopt(_M_PERTURB, _FILLING))
    except AttributeError:  # another C library
        return False


def _lock_memory(libc: ctypes.CDLL) -> bool:
    # Under a limit a later allocation would fail, which is worse than swap. With a limit of 0
    # the call succeeds only for those whom no limit binds (CAP_IPC_LOCK): all or nothing.
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limited = soft != resource.RLIM_INFINITY
    if limited:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
    finally:
        if limited:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
