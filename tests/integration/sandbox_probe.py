"""A hostile engine: tries to get out, and reports over its socket how far it got.

Runs as the engine's program inside the sandbox, and in the same way outside it, where every
probe must succeed first: a probe that fails everywhere proves nothing. Standard library only.

Usage: ``sandbox_probe.py CONTROL_FD SOCKET_DIRECTORY TARGETS_JSON``, or, to try one layer by
itself and print the findings, ``sandbox_probe.py print LAYER TARGETS_JSON``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET_NAME = "engine.sock"
# name: (x86_64, aarch64), arguments that a willing kernel answers with success or EINVAL & co.
_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "ptrace": (101, 117, (0, 0, 0, 0)),
    "process_vm_readv": (310, 270, (-1, 0, 0, 0, 0, 0)),
    "memfd_create": (319, 279, (0, 0)),
    "io_uring_setup": (425, 425, (0, 0)),
    "userfaultfd": (323, 282, (-1,)),
    "bpf": (321, 280, (-1, 0, 0)),
    "perf_event_open": (298, 241, (0, -1, -1, -1, -1)),
    "keyctl": (250, 219, (0, -1, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "umount2": (166, 39, (0, 0)),
    "pivot_root": (155, 41, (0, 0)),
    "chroot": (161, 51, (0,)),
    "setns": (308, 268, (-1, 0)),
    "open_by_handle_at": (304, 265, (-1, 0, 0)),
    "pidfd_open": (434, 434, (-1, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "execve": (59, 221, (0, 0, 0)),
    "execveat": (322, 281, (-1, 0, 0, 0, 0)),
    "connect": (42, 203, (-1, 0, 0)),
    "sendmsg": (46, 211, (-1, 0, 0)),
    "seccomp": (317, 277, (99, 0, 0)),
    "prctl_dumpable": (157, 167, (4, 1, 0, 0, 0)),
    "prlimit64": (302, 261, (0, 4, 0, 0)),
    "kill": (62, 129, (0, 0)),
    "unlink": (263, 35, (-1, 0, 0)),
    "symlink": (266, 36, (0, -1, 0)),
    "rename": (316, 276, (-1, 0, -1, 0, 0)),
    "mkdir": (258, 34, (-1, 0, 0)),
    "chmod": (268, 53, (-1, 0, 0)),
    "truncate": (76, 45, (0, 0)),
    "ioctl": (16, 29, (-1, 0, 0)),
    "pkey_mprotect": (329, 288, (1, 0, 0, 0)),
    "name_to_handle_at": (303, 264, (-1, 0, 0, 0, 0)),
    "unshare": (272, 97, (0x10000000,)),  # last: it changes the process
}
_BLIND = {errno.EPERM, errno.EACCES, errno.ENOSYS}


def _call(name: str) -> Callable[[dict[str, Any]], object]:
    """A probe that succeeds when the kernel looks at the call at all."""

    def probe(targets: dict[str, Any]) -> object:
        x86_64, aarch64, arguments = _CALLS[name]
        number = aarch64 if targets["machine"] == "aarch64" else x86_64
        libc = ctypes.CDLL(None, use_errno=True)
        values = [ctypes.c_long(value) for value in (number, *arguments)]
        result = int(libc.syscall(*values))
        met = ctypes.get_errno()
        if result < 0 and met in _BLIND:
            raise OSError(met, os.strerror(met))
        return result

    return probe


def _connect(family: int, address: object) -> object:
    with socket.socket(socket.AddressFamily(family), socket.SOCK_STREAM) as made:
        made.settimeout(2)
        made.connect(address)  # type: ignore[arg-type]  # as the family has it
        return "connected"


def _udp(targets: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        return made.sendto(b"leak", ("127.0.0.1", targets["udp_port"]))


def _fork(_: dict[str, Any]) -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    with contextlib.suppress(OSError):  # that it cannot be waited for is not what is asked
        os.waitpid(pid, 0)
    return pid


def _spawn(_: dict[str, Any]) -> object:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    os.waitpid(pid, 0)
    return pid


def _write_and_execute(_: dict[str, Any]) -> object:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        return len(memory)


def _listed(path: str) -> list[str]:
    return [entry.name for entry in Path(path).iterdir()]


def _processes(targets: dict[str, Any]) -> object:
    if str(targets["host_pid"]) not in _listed("/proc"):
        raise PermissionError("the host's process is not to be seen")
    return "seen"


def _interfaces(_: dict[str, Any]) -> object:
    return socket.if_nameindex()


PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    "tcp": lambda t: _connect(socket.AF_INET, ("127.0.0.1", t["tcp_port"])),
    "tcp6_socket": lambda _: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
    "udp": _udp,
    "netlink_socket": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "interfaces": _interfaces,
    "abstract_socket": lambda t: _connect(socket.AF_UNIX, "\0" + t["abstract"]),
    "path_socket": lambda t: _connect(socket.AF_UNIX, t["path_socket"]),
    "read_passwd": lambda _: len(Path("/etc/passwd").read_bytes()),
    "read_secret": lambda t: Path(t["secret"]).read_bytes().decode(),
    "list_home": lambda t: _listed(str(Path(t["secret"]).parent)),
    "write_host_tmp": lambda t: Path(t["host_tmp"], "leak").write_text("leak"),
    "write_model": lambda t: Path(t["model"]).open("r+b").close(),
    "write_beside_model": lambda t: Path(t["model"]).with_name("leak").write_text("leak"),
    "write_socket_dir": lambda t: Path(t["sockets"], "leak").write_text("leak"),
    "mkdir_socket_dir": lambda t: Path(t["sockets"], "folder").mkdir(),
    "list_processes": _processes,
    "read_environ": lambda t: len(Path(f"/proc/{t['host_pid']}/environ").read_bytes()),
    "read_maps": lambda _: len(Path("/proc/self/maps").read_bytes()),
    "read_sys": lambda _: _listed("/sys/class"),
    "read_dev": lambda _: _listed("/dev"),
    "fork": _fork,
    "spawn": _spawn,
    "write_and_execute": _write_and_execute,
    **{name: _call(name) for name in _CALLS},
}


def run(targets: dict[str, Any]) -> dict[str, str | None]:
    """Run every probe; map its name to the error it met, None where it got through."""
    found: dict[str, str | None] = {}
    for name, probe in PROBES.items():
        try:
            probe(targets)
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, type(error).__name__)
        else:
            found[name] = None
    return found


def open_descriptors() -> list[int]:
    """Return the descriptors this process holds, found without /proc."""
    held = []
    for descriptor in range(256):
        try:
            os.lseek(descriptor, 0, os.SEEK_CUR)
        except OSError as error:
            if error.errno == errno.EBADF:
                continue
        held.append(descriptor)
    return held


def print_under(layer: str, targets: dict[str, Any]) -> None:
    """Confine this process by `layer` alone and print what the probes find."""
    if layer == "seccomp":
        from cloister.engine import seccomp

        arch = seccomp.this_arch(targets["machine"])
        assert arch is not None
        seccomp.install(seccomp.assemble(seccomp.RUN_RULES, arch), arch)
    elif layer == "landlock":
        from cloister.engine import landlock

        landlock.restrict(readable=targets["readable"], sockets_in=[targets["sockets"]])
    sys.stdout.write(json.dumps(run(targets)))
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Listen, be ready, and answer one connection with the findings."""
    targets = json.loads(sys.argv[3])
    if sys.argv[1] == "print":
        print_under(sys.argv[2], targets)
    control = socket.socket(fileno=int(sys.argv[1]))
    targets["sockets"] = sys.argv[2]
    held = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{sys.argv[2]}/{SOCKET_NAME}")
        server.listen(1)
        control.send(b"ready")
        connection, _ = server.accept()
    with connection:
        report = {
            "probes": run(targets),
            "descriptors": [d for d in held if d != control.fileno()],
            "environment": sorted(os.environ),
        }
        connection.sendall(json.dumps(report).encode())
    control.recv(1)


if __name__ == "__main__":
    main()
