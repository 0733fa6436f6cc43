"""A folder in memory that one worker and what it starts can see, and that ends with them.

Weights are opened into it. It is a tmpfs in a mount namespace of the worker's own: no other
process of the machine finds a path to it, and when the last process of the namespace is gone,
however it ended, the kernel frees all of it. Without the right to mount, the worker gets a user
namespace as well, in which it has that right (Linux ``user_namespaces(7)``, ``tmpfs(5)``).

Standard library only, and before the process has a second thread: the kernel gives no other
process a user namespace.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError

_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWUSER: Final = 0x1000_0000
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_CLOSED: Final = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC

_SLACK: Final = 1 << 20  # for folders; a file takes whole pages besides
_PAGE: Final = 2 << 20  # a large page, of which each file's last one may be nearly empty

#: Not in swap, where the kernel can promise that (Linux 6.4, outside user namespaces), and in
#: large pages, which is several times as quick to fill.
_OPTIONS: Final = ("noswap,huge=within_size", "huge=within_size", "noswap", "")


FOLDER: Final = "weights"
"""Its name in the worker's private directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMemory:
    """How much of it a worker needs: `size` bytes in `files` files."""

    size: int
    files: int

    def to_json(self, directory: Path) -> dict[str, object]:
        """For `make_memory`, of a worker with this private directory."""
        return {"folder": str(directory / FOLDER), "size": self.size, "files": self.files}


def make_memory(folder: Path, *, size: int, files: int, swaps: Path = Path("/proc/swaps")) -> None:
    """Mount a tmpfs for `files` files of `size` bytes together at `folder`, which is made.

    This process moves to a mount namespace of its own. Call it in a process of one thread.

    Raises ConfigurationError (``weights.memory``) if the kernel refuses, or would write it to
    swap.
    """
    _own_namespace()
    folder.mkdir(mode=0o700)
    bound = size + files * _PAGE + _SLACK
    for options in _OPTIONS:
        words = [f"size={bound}", "mode=0700", f"nr_inodes={4 * files + 64}", options]
        if _mount("tmpfs", folder, "tmpfs", _CLOSED, ",".join(filter(None, words))) == 0:
            break
    else:
        raise _refused("this kernel mounts no tmpfs for it", ctypes.get_errno())
    if "noswap" not in options and _has_swap(swaps):
        raise ConfigurationError(
            "this machine has swap, and its kernel cannot keep the weights out of it: switch swap "
            "off (swapoff -a), or run the worker as root on Linux 6.4 or later",
            code="weights.memory",
        )


def close_memory(folder: Path) -> None:
    """Make the tmpfs at `folder` read-only for everybody, this process included.

    Raises ConfigurationError (``weights.memory``) if the kernel refuses.
    """
    if _mount(None, folder, None, _MS_REMOUNT | _MS_RDONLY | _CLOSED, None) != 0:
        raise _refused("the opened weights cannot be made read-only", ctypes.get_errno())


def _own_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
            raise _refused(
                "the kernel refuses a mount namespace to this process, which takes root, or user "
                "namespaces for everybody (see the sandbox's requirements)",
                ctypes.get_errno(),
            )
        _map_to_themselves(user, group)
    # What is mounted here must not appear outside.
    if _mount(None, Path("/"), None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise _refused("the kernel shares this process's mounts", ctypes.get_errno())


def _map_to_themselves(user: int, group: int) -> None:
    """In the new user namespace the process stays who it is (user_namespaces(7))."""
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise _refused("the kernel maps no user into a namespace", error.errno or 0) from None


def _mount(
    source: str | None, target: Path, kind: str | None, flags: int, options: str | None
) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else word.encode() for word in (source, kind, options)]
    result: int = libc.mount(
        words[0], os.fsencode(target), words[1], ctypes.c_ulong(flags), words[2]
    )
    return result


def _has_swap(swaps: Path) -> bool:
    """Whether a swap area is in use; it counts as one if nobody can tell."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return True


def _refused(why: str, errno: int) -> ConfigurationError:
    return ConfigurationError(f"{why} (errno {errno})", code="weights.memory")
