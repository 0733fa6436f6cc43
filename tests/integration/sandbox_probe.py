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
#: A number of -1: no such call on that architecture, so no such probe.
_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    # other processes
    "ptrace": (101, 117, (0, 0, 0, 0)),
    "process_vm_readv": (310, 270, (-1, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, 271, (-1, 0, 0, 0, 0, 0)),
    "kcmp": (312, 272, (0, 0, 99, 0, 0)),
    "move_pages": (279, 239, (0, 0, 0, 0, 0, 0)),
    "pidfd_open": (434, 434, (-1, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "peer_pidfd": (55, 209, (-1, 1, 77, 0, 0)),  # getsockopt SO_PEERPIDFD
    "kill": (62, 129, (0, 0)),
    "tgkill": (234, 131, (0, 0, 0)),
    "rt_sigqueueinfo": (129, 138, (0, 0, 0)),
    "pidfd_send_signal": (424, 424, (-1, 0, 0, 0)),
    # other ways out
    "io_uring_setup": (425, 425, (0, 0)),
    "connect": (42, 203, (-1, 0, 0)),
    "send_to_address": (44, 206, (-1, 0, 0, 0, 1, 16)),
    "sendmsg": (46, 211, (-1, 0, 0)),
    "sendmmsg": (307, 269, (-1, 0, 0, 0)),
    "socket_filter": (54, 208, (-1, 1, 26, 0, 0)),  # setsockopt SO_ATTACH_FILTER
    "memfd_create": (319, 279, (0, 0)),
    "mq_open": (240, 180, (0, 0, 0, 0)),
    "keyctl": (250, 219, (0, -1, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "request_key": (249, 218, (0, 0, 0, 0)),
    "ioctl": (16, 29, (-1, 0, 0)),
    "tiocsti": (16, 29, (0, 0x5412, 0)),
    "inotify_init": (294, 26, (-1,)),
    "fanotify_init": (300, 262, (-1, 0)),
    "mincore": (27, 232, (0, 0, 0)),
    "mergeable": (28, 233, (0, 0, 12)),  # madvise MADV_MERGEABLE
    # the kernel itself
    "userfaultfd": (323, 282, (-1,)),
    "bpf": (321, 280, (-1, 0, 0)),
    "perf_event_open": (298, 241, (0, -1, -1, -1, -1)),
    "syslog": (103, 116, (10, 0, 0)),
    "personality": (135, 92, (0xFFFFFFFF,)),
    "modify_ldt": (154, -1, (99, 0, 0)),
    "settimeofday": (164, 170, (0, 0)),
    "swapon": (167, 224, (0, 0)),
    "reboot": (169, 142, (0, 0, 0, 0)),  # without its magic numbers
    # rights
    "setresuid": (117, 147, (-1, -1, -1)),
    "capset": (126, 91, (0, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "umount2": (166, 39, (0, 0)),
    "fsopen": (430, 430, (0, 0)),
    "open_tree": (428, 428, (-1, 0, 0)),
    "mount_setattr": (442, 442, (-1, 0, 0, 0, 0)),
    "pivot_root": (155, 41, (0, 0)),
    "chroot": (161, 51, (0,)),
    "setns": (308, 268, (-1, 0)),
    "seccomp": (317, 277, (99, 0, 0)),
    "prctl_dumpable": (157, 167, (4, 1, 0, 0, 0)),
    "prlimit64": (302, 261, (0, 4, 0, 0)),
    "setpriority": (141, 140, (0, 0, 19)),
    "sched_setscheduler": (144, 119, (0, 0, 0)),
    "sched_setaffinity": (203, 122, (0, 0, 0)),
    # files
    "open_by_handle_at": (304, 265, (-1, 0, 0)),
    "name_to_handle_at": (303, 264, (-1, 0, 0, 0, 0)),
    "unlink": (263, 35, (-1, 0, 0)),
    "symlink": (266, 36, (0, -1, 0)),
    "link": (265, 37, (-1, 0, -1, 0, 0)),
    "rename": (316, 276, (-1, 0, -1, 0, 0)),
    "mkdir": (258, 34, (-1, 0, 0)),
    "mknod": (259, 33, (-1, 0, 0, 0)),
    "chmod": (268, 53, (-1, 0, 0)),
    "chown": (260, 54, (-1, 0, 0, 0, 0)),
    "setxattr": (188, 5, (0, 0, 0, 0, 0)),
    "truncate": (76, 45, (0, 0)),
    "fallocate": (285, 47, (-1, 0, 0, 1)),
    # programs and memory
    "execve": (59, 221, (0, 0, 0)),
    "execveat": (322, 281, (-1, 0, 0, 0, 0)),
    "clone3": (435, 435, (0, 0)),
    "write_then_execute": (10, 226, (0, 0, 5)),  # mprotect PROT_READ | PROT_EXEC
    "pkey_mprotect": (329, 288, (1, 0, 0, 0)),
    "mlock": (149, 228, (0, 0)),
    "shared_memory": (9, 222, (0, 4096, 3, 0x21, -1, 0)),  # mmap MAP_SHARED | MAP_ANONYMOUS
    "huge_pages": (9, 222, (0, 1 << 21, 3, 0x40022, -1, 0)),  # mmap MAP_HUGETLB
    "growing_memory": (9, 222, (0, 4096, 3, 0x122, -1, 0)),  # mmap MAP_GROWSDOWN
    "setitimer": (38, 103, (0, 0, 0)),
    "timer_create": (222, 107, (0, 0, 0)),
    "unshare": (272, 97, (0x10000000,)),  # last: it changes the process
}
# uname(2) is refused inside
_MACHINE = 1 if "aarch64" in getattr(sys.implementation, "_multiarch", "") else 0
_SYSTEM_V = {
    name: (get[_MACHINE], control[_MACHINE])
    for name, get, control in (
        ("shm", (29, 194), (31, 195)),
        ("sem", (64, 190), (66, 191)),
        ("msg", (68, 186), (71, 187)),
    )
}
_BLIND = {errno.EPERM, errno.EACCES, errno.ENOSYS}


def _number(name: str) -> int:
    x86_64, aarch64, _ = _CALLS[name]
    return aarch64 if _MACHINE else x86_64


def _call(name: str) -> Callable[[dict[str, Any]], object]:
    """A probe that succeeds when the kernel looks at the call at all."""

    def probe(targets: dict[str, Any]) -> object:
        del targets
        arguments = _CALLS[name][2]
        number = _number(name)
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


def _dns(targets: dict[str, Any]) -> object:
    """Ask the host's resolver for a name that is the secret, and get an answer."""
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\6secret\7example\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.connect(("127.0.0.1", targets["dns_port"]))
        made.send(query)
        return len(made.recv(512))


def _open_socket(family: int, kind: int, protocol: int = 0) -> object:
    socket.socket(family, kind, protocol).close()
    return "opened"


def _datagram(targets: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return made.sendto(b"leak", "\0" + targets["abstract_datagram"])


def _system_v(get: int, control: int, *arguments: int) -> Callable[[dict[str, Any]], object]:
    """Make a System V object, which outlives its maker, and remove it again."""

    def probe(targets: dict[str, Any]) -> object:
        del targets
        libc = ctypes.CDLL(None, use_errno=True)
        made = libc.syscall(ctypes.c_long(get), *(ctypes.c_long(value) for value in arguments))
        if made < 0:
            raise OSError(ctypes.get_errno(), "refused")
        place = (0,) if len(arguments) == 3 and arguments[1] == 1 else ()  # semctl(id, n, cmd)
        ends = (made, *place, 0, 0)
        libc.syscall(ctypes.c_long(control), *(ctypes.c_long(value) for value in ends))
        return made

    return probe


def _shared_file(targets: dict[str, Any]) -> object:
    path = Path("/dev/shm", targets["abstract"])
    path.write_text("leak")
    path.unlink()  # it would outlive this process
    return "written"


def _write_here(_: dict[str, Any]) -> object:
    path = Path(f"leak-{os.getpid()}")  # in its working directory: inside, that is the root
    path.write_text("leak")
    path.unlink()
    return "written"


def _locked(_: dict[str, Any]) -> object:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000  # MAP_LOCKED
    with mmap.mmap(-1, 4096, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        return len(memory)


def _second_socket(targets: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(f"{targets['sockets']}/second-{os.getpid()}.sock")
        return "bound"


def _socket_pair(_: dict[str, Any]) -> object:
    for end in socket.socketpair():
        end.close()
    return "paired"


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
    """By its number and its start: inside, another process may have the same number."""
    of_host = Path(f"/proc/{targets['host_pid']}")
    if of_host.name not in _listed("/proc") or _started(of_host) != targets["host_started"]:
        raise PermissionError("the host's process is not to be seen")
    return "seen"


def _started(process: Path) -> str:
    """When a process began, in ticks since the machine did (proc(5), stat, the 22nd field)."""
    return (process / "stat").read_text().rpartition(")")[2].split()[19]


def _descriptors(targets: dict[str, Any]) -> object:
    _processes(targets)
    return _listed(f"/proc/{targets['host_pid']}/fd")


def _environment(targets: dict[str, Any]) -> object:
    _processes(targets)
    return len(Path(f"/proc/{targets['host_pid']}/environ").read_bytes())


def _interfaces(_: dict[str, Any]) -> object:
    return socket.if_nameindex()


PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    "tcp": lambda t: _connect(socket.AF_INET, ("127.0.0.1", t["tcp_port"])),
    "tcp6_socket": lambda _: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
    "udp": _udp,
    "dns": _dns,
    "netlink_socket": lambda _: _open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "raw_socket": lambda _: _open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "packet_socket": lambda _: _open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock_socket": lambda _: _open_socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "unix_datagram": _datagram,
    "socket_pair": _socket_pair,
    "second_socket": _second_socket,
    "interfaces": _interfaces,
    "abstract_socket": lambda t: _connect(socket.AF_UNIX, "\0" + t["abstract"]),
    "path_socket": lambda t: _connect(socket.AF_UNIX, t["path_socket"]),
    "read_passwd": lambda _: len(Path("/etc/passwd").read_bytes()),
    "read_secret": lambda t: Path(t["secret"]).read_bytes().decode(),
    "list_home": lambda t: _listed(str(Path(t["secret"]).parent)),
    "write_host_tmp": lambda t: Path(t["host_tmp"], "leak").write_text("leak"),
    "write_shm": _shared_file,
    "write_here": _write_here,
    "write_model": lambda t: Path(t["model"]).open("r+b").close(),
    "write_beside_model": lambda t: Path(t["model"]).with_name("leak").write_text("leak"),
    "write_socket_dir": lambda t: Path(t["sockets"], "leak").write_text("leak"),
    "mkdir_socket_dir": lambda t: Path(t["sockets"], "folder").mkdir(),
    "list_processes": _processes,
    "read_environ": _environment,
    "read_descriptors": _descriptors,
    "read_memory": lambda _: Path("/proc/self/mem").open("rb").close(),
    "read_maps": lambda _: len(Path("/proc/self/maps").read_bytes()),
    "read_sys": lambda _: _listed("/sys/class"),
    "read_dev": lambda _: _listed("/dev"),
    "fork": _fork,
    "spawn": _spawn,
    "write_and_execute": _write_and_execute,
    "locked_memory": _locked,
    "shmget": _system_v(*_SYSTEM_V["shm"], 0, 4096, 0o1600),
    "semget": _system_v(*_SYSTEM_V["sem"], 0, 1, 0o1600),
    "msgget": _system_v(*_SYSTEM_V["msg"], 0, 0o1600),
    **{name: _call(name) for name in _CALLS if _number(name) >= 0},
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
