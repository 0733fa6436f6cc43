"""A hostile managed engine: tries to get out of the wider sandbox, and reports how far it got.

Runs as the engine's program inside the managed sandbox, and in the same way outside it, where every
probe must succeed first. It tries what `sandbox_probe` tries, and what having a ``/proc``, a
``/dev``, places to write and the right to start programs adds. Standard library only.

Usage: ``managed_probe.py SOCKET TARGETS_JSON``; or ``managed_probe.py print LAYER TARGETS_JSON``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from integration.sandbox_probe import PROBES as COMMON
    from integration.sandbox_probe import open_descriptors
else:  # the two lie beside each other wherever they run
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from sandbox_probe import PROBES as COMMON
    from sandbox_probe import open_descriptors

_CLONE_NEWUSER = 0x10000000
_SIGCHLD = 17
#: name: (x86_64, aarch64), arguments that a willing kernel answers with success or EINVAL & co.
_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "process_vm_writev": (311, 271, (-1, 0, 0, 0, 0, 0)),
    "kcmp": (312, 272, (-1, -1, 0, 0, 0)),
    "request_key": (249, 218, (0, 0, 0, 0)),
    "personality": (135, 92, (-1,)),
    "swapon": (167, 224, (0, 0)),
    "finit_module": (313, 273, (-1, 0, 0)),
    "clock_settime": (227, 112, (0, 0)),
    "sethostname": (170, 161, (0, -1)),
}


def _call(name: str) -> Callable[[dict[str, Any]], object]:
    def probe(targets: dict[str, Any]) -> object:
        x86_64, aarch64, arguments = _CALLS[name]
        number = aarch64 if targets["machine"] == "aarch64" else x86_64
        libc = ctypes.CDLL(None, use_errno=True)
        result = int(libc.syscall(*(ctypes.c_long(value) for value in (number, *arguments))))
        met = ctypes.get_errno()
        if result < 0 and met in (1, 13, 38):
            raise OSError(met, os.strerror(met))
        return result

    return probe


def _new_user_namespace(targets: dict[str, Any]) -> object:
    """By clone itself, which no wrapper of the C library's stands before."""
    number = 220 if targets["machine"] == "aarch64" else 56
    libc = ctypes.CDLL(None, use_errno=True)
    words = (number, _CLONE_NEWUSER | _SIGCHLD, 0, 0, 0, 0)
    child = int(libc.syscall(*(ctypes.c_long(value) for value in words)))
    if child == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "no namespace")
    os.waitpid(child, 0)
    return child


def _opens(path: str, flags: int = os.O_WRONLY) -> None:
    os.close(os.open(path, flags))


def _run_a_copy(targets: dict[str, Any]) -> object:
    copied = Path(targets["scratch"], "copied-program")
    shutil.copyfile("/usr/bin/true", copied)
    copied.chmod(0o755)
    return subprocess.run([str(copied)], check=True)


def _fill(place: str, size: int) -> object:
    target = Path(place, "balloon")
    try:
        with target.open("wb") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    finally:
        target.unlink(missing_ok=True)
    return size


def _device(targets: dict[str, Any]) -> None:
    os.mknod(Path(targets["scratch"], "device"), stat.S_IFCHR | 0o600, os.makedev(1, 1))


def _core(_: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


def _parents_memory(_: dict[str, Any]) -> None:
    _opens(f"/proc/{os.getppid()}/mem", os.O_RDONLY)


def _account(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda _: _opens(f"/proc/{name}", os.O_RDONLY)


#: What the kernel tells of the whole machine.
ACCOUNTS = (
    "interrupts", "kallsyms", "key-users", "keys", "kpagecgroup", "kpagecount", "kpageflags",
    "pagetypeinfo", "slabinfo", "softirqs", "timer_list", "vmallocinfo",
)  # fmt: skip

PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    **COMMON,
    "crypto_socket": lambda _: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close(),
    "core_pattern": lambda _: _opens("/proc/sys/kernel/core_pattern"),
    "sysrq": lambda _: _opens("/proc/sysrq-trigger"),
    "own_oom_score": lambda _: _opens("/proc/self/oom_score_adj"),
    "parents_memory": _parents_memory,
    "other_device": lambda _: _opens("/dev/ptmx", os.O_RDWR),
    "make_device": _device,
    "write_usr": lambda t: Path(t["usr"], "leak").write_text("leak"),
    "write_installation": lambda t: Path(t["installation"], "leak").write_text("leak"),
    "write_home": lambda t: Path(t["secret"]).with_name("leak").write_text("leak"),
    "add_to_dev": lambda t: Path(t["dev"], "leak").write_text("leak"),
    "become_root": lambda _: os.setuid(0),
    "raise_core_limit": _core,
    "run_a_copy": _run_a_copy,
    "fill_scratch": lambda t: _fill(t["scratch"], t["too_much"]),
    "fill_shared": lambda t: _fill(t["shared"], t["too_much"]),
    "new_user_namespace": _new_user_namespace,
    **{f"account_{name}": _account(name) for name in ACCOUNTS},
    **{name: _call(name) for name in _CALLS},
}
#: These change the process that tries them: a traced one stops at its child's end.
LAST = ("ptrace", "unshare")


def run(targets: dict[str, Any]) -> dict[str, str | None]:
    """Run every probe; map its name to the error it met, None where it got through."""
    found: dict[str, str | None] = {}
    for name in (*(name for name in PROBES if name not in LAST), *LAST):
        try:
            PROBES[name](targets)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            found[name] = type(error).__name__
        else:
            found[name] = None
    return found


def breed(limit: int) -> int:
    """Fork until it is refused, at most `limit` times; how often it worked."""
    children = []
    for _ in range(limit):
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            time.sleep(600)
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return len(children)


def answer(targets: dict[str, Any]) -> dict[str, Any]:
    """Do what the targets ask for."""
    if targets.get("breed"):
        return {"bred": breed(targets["breed"])}
    if targets.get("swell"):
        held = [bytearray(b"x" * (1 << 20)) for _ in range(targets["swell"] >> 20)]
        return {"swollen": len(held)}
    return {
        "probes": run(targets),
        "descriptors": open_descriptors(),
        "environment": sorted(os.environ),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
    }


def main() -> None:
    """Listen, and answer one connection with the findings."""
    if sys.argv[1] == "print":
        targets = json.loads(sys.argv[3])
        if sys.argv[2] == "seccomp":
            from cloister.engine import managed_seccomp, seccomp

            arch = seccomp.this_arch(targets["machine"])
            assert arch is not None
            seccomp.install(managed_seccomp.assemble(arch), arch)
        sys.stdout.write(json.dumps(run(targets)))
        return
    targets = json.loads(sys.argv[2])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(sys.argv[1])
        server.listen(8)
        while True:
            connection, _ = server.accept()
            with connection:
                if connection.recv(1) == b"?":  # whoever only looks whether it listens says nothing
                    connection.sendall(json.dumps(answer(targets)).encode())


if __name__ == "__main__":
    main()
