"""The second sandbox profile, for engines that are whole systems: vLLM, SGLang, TGI, Triton.

The profile of the embedded engine (`cloister.engine.sandbox`) lets nothing run but one program
that was measured file by file. Engines made of an interpreter, compilers and a GPU's driver cannot
live in it, so this one gives them what they need and nothing that leads out:

- a network namespace of their own, which holds a loopback and nothing else;
- as files the system's ``/usr`` and linker cache, the engine's own directories and the model, all
  read-only; a ``/proc`` of their own processes, read-only and without most of the kernel's accounts
  of the machine; of ``/dev`` null, zero, full, random, urandom and, where named, GPUs; of ``/sys``
  the list of processors;
- as places to write three tmpfs of bounded size: ``/tmp``, ``/dev/shm`` and the socket's directory;
- no capability, no way to a new user namespace, no core dumps, and a filter that refuses system
  calls by name (`cloister.engine.managed_seccomp`);
- where the kernel has Landlock, programs run from the read-only directories only, and no signal
  and no abstract socket leads out.

It is weaker than the other: code inside may start programs and write to memory that it executes,
and a GPU's driver is a large part of the kernel. Its name in the measured configuration is another
one, so that a policy has to accept it by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.engine import (
    landlock,
    libraries,
    managed_seccomp,
    seccomp,
    shown,
    spawning,
    status,
)
from cloister.engine.confined import Confined, bind_source, opened_files
from cloister.engine.control_group import ControlGroup
from cloister.errors import SandboxError

MODE: Final = "sandbox-managed"
HOME: Final = "/tmp/home"  # noqa: S108 - the sandbox's own
SOCKET: Final = "/run/engine/engine.sock"

_OURS: Final = "/cloister"
_SOCKETS: Final = "/run/engine"
_SOCKETS_BYTES: Final = 65_536  # room for a socket's inode, not for text
_NOBODY: Final = "65534"
_SYSTEM: Final = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
_LINKER: Final = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_PROCESSORS: Final = ("/sys/devices/system/cpu", "/sys/devices/system/node")
_INTERCONNECT: Final = ("/sys/devices", "/sys/class/pci_bus", "/sys/bus/pci")
#: The kernel's accounts of the whole machine. By counts of pages, interrupts and timers one process
#: learns what others do, and what root may read the engine of a worker run by root may read.
_ACCOUNTS: Final = (
    "interrupts", "kallsyms", "kcore", "key-users", "keys", "kpagecgroup", "kpagecount",
    "kpageflags", "latency_stats", "pagetypeinfo", "sched_debug", "slabinfo", "softirqs",
    "timer_list", "vmallocinfo",
)  # fmt: skip
_PARTS: Final = ("landlock.py", "managed_relay.py", "shown.py")
_EXTENSIONS: Final = ("_ctypes", "_json")
_FLAGS: Final = ("-E", "-s", "-S", "-B", "-X", "pycache_prefix=/nonexistent")

#: Files of the system that programs look for, with as little in them as will do.
_ETC: Final = {
    "/etc/passwd": b"nobody:x:65534:65534:nobody:/tmp/home:/nonexistent\n",
    "/etc/group": b"nogroup:x:65534:\n",
    "/etc/hosts": b"127.0.0.1 localhost engine\n::1 localhost engine\n",
    "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}

_READ: Final = landlock.READ_FILE | landlock.READ_DIR
_RUN: Final = _READ | landlock.EXECUTE
_WRITE: Final = landlock.ALL & ~(landlock.EXECUTE | landlock.MAKE_DEVICES | landlock.IOCTL_DEVICE)
_DEVICE: Final = _READ | landlock.WRITE_FILE | landlock.IOCTL_DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedProgram:
    """A program to run in the managed sandbox.

    It is started as `arguments` with `environment`. `roots` are directories of the host that it
    sees under their own names, read-only; `files` are shown at the given paths (one that was
    opened already is named below `DESCRIPTORS`, by a descriptor in `inherited`), and `texts` are
    small files of the given content. `port` is where it listens on its own loopback; None if it
    makes `SOCKET` itself. `gpus` are the numbers of NVIDIA devices.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)
    inherited: tuple[int, ...] = ()
    port: int | None = None
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedSandbox:
    """Bubblewrap, a system-call filter and, where the kernel has it, Landlock.

    `scratch` and `shared` are the most bytes that ``/tmp`` and ``/dev/shm`` hold; `memory` and
    `processes` are limits for all inside together (0: none), kept by control groups where this
    process may make some. `require_landlock` refuses a kernel without it. `landlock_abi` is
    probed when the object is made.
    """

    scratch: int = 8 << 30
    shared: int = 8 << 30
    memory: int = 0
    processes: int = 4_096
    require_landlock: bool = False
    bwrap: str | None = None
    landlock_abi: int = field(default_factory=landlock.abi)

    def describe(self, *, gpus: tuple[int, ...] = ()) -> Mapping[str, object]:
        """Name the layers, outermost first."""
        return {
            "mode": MODE,
            "layers": [
                "namespaces",
                "read-only-system",
                "bounded-scratch",
                "no-capabilities",
                "no-user-namespaces",
                "no-core-dumps",
                "seccomp-refusals",
                # Ports are the network namespace's business here.
                *(one for one in landlock.layers(self.landlock_abi) if one != "landlock-tcp"),
            ],
            "devices": [f"nvidia{number}" for number in gpus],
        }

    async def spawn(self, program: ManagedProgram) -> Confined:
        """Start `program`; return when it is confined with every layer `describe` names."""
        arch = seccomp.this_arch(os.uname().machine)
        if arch is None:
            raise SandboxError(
                f"no system-call filter exists for {os.uname().machine}; x86_64 and aarch64 do",
                code="sandbox.arch",
            )
        if self.require_landlock and not self.landlock_abi:
            raise SandboxError("this kernel has no Landlock", code="sandbox.landlock")
        _check_interconnect(program)
        bwrap = spawning.find_bwrap(self.bwrap)
        view = await asyncio.to_thread(_View.of, program)
        with contextlib.ExitStack() as pipes, contextlib.ExitStack() as cleanup:
            group = ControlGroup.make(memory=self.memory, processes=self.processes)
            if group is not None:
                cleanup.callback(group.remove)
            inside = self._arguments(program, view, pipes)
            filter_fd = pipes.enter_context(
                _piped(managed_seccomp.assemble(arch, interfaces=bool(program.gpus)))
            )
            # A folder of a thousand files is more than the kernel takes as one argument.
            plan = pipes.enter_context(_stored(json.dumps(self._plan(program, view)).encode()))
            info, info_end = os.pipe()
            pipes.callback(os.close, info_end)
            command = [bwrap, *inside.arguments, "--seccomp", str(filter_fd)]
            command += ["--info-fd", str(info_end), "--", f"{_OURS}/python/bin/python3", *_FLAGS]
            command.append(f"{_OURS}/app/managed_boot.py")
            confined = await spawning.start(
                command if group is None else group.enter(command),
                [str(plan)],
                keep=(filter_fd, info_end, plan, *inside.descriptors, *program.inherited),
                info=info,
                cleanup=cleanup.pop_all(),
            )
        return await spawning.confirm(confined, status.CONFINED, self.landlock_abi)

    def _arguments(
        self, program: ManagedProgram, view: _View, pipes: contextlib.ExitStack
    ) -> _Inside:
        texts: list[str] = []
        descriptors: list[int] = []
        for path, content in sorted({**_ETC, **program.texts}.items()):
            descriptor = pipes.enter_context(_piped(content))
            descriptors.append(descriptor)
            texts += ["--perms", "0444", "--ro-bind-data", str(descriptor), path]
        engine = b"".join(os.fsencode(word) + b"\0" for word in view.engine)
        descriptors.append(pipes.enter_context(_stored(engine)))
        return _Inside(
            arguments=[
                "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net",
                "--unshare-uts", "--unshare-cgroup-try", "--disable-userns",
                "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "engine",
                "--die-with-parent", "--new-session", "--cap-drop", "ALL",
                "--clearenv", "--setenv", "LD_LIBRARY_PATH", f"{_OURS}/lib",
                *view.system, *view.ours,
                "--proc", "/proc", *view.hidden, "--remount-ro", "/proc",
                "--perms", "0755", "--size", "65536", "--tmpfs", "/dev", *view.devices,
                "--perms", "0700", "--size", str(self.shared), "--tmpfs", "/dev/shm",  # noqa: S108
                "--perms", "0700", "--size", str(self.scratch), "--tmpfs", "/tmp",  # noqa: S108
                "--args", str(descriptors[-1]), *texts,
                "--perms", "0700", "--size", str(_SOCKETS_BYTES), "--tmpfs", _SOCKETS,
                "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/",
            ],
            descriptors=descriptors,
        )  # fmt: skip

    def _plan(self, program: ManagedProgram, view: _View) -> Mapping[str, object]:
        return {
            "arguments": program.arguments,
            "environment": {
                "HOME": HOME,
                "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
                "LANG": "C.UTF-8",
                "PATH": ":".join([*view.programs, "/usr/local/bin", "/usr/bin", "/bin"]),
                **program.environment,
            },
            "port": program.port,
            "shown": shown.encode(opened_files(program.files)),
            "directories": [HOME],
            "processes": self.processes,
            "rights": {
                **dict.fromkeys(view.readable, _READ),
                **dict.fromkeys(view.runnable, _RUN),
                # What is in /dev can be neither added to nor removed: its tmpfs is read-only.
                "/dev": _DEVICE,
                "/dev/shm": _WRITE,  # noqa: S108
                "/tmp": _WRITE,  # noqa: S108
                _SOCKETS: landlock.MAKE_SOCK,
            },
        }


@dataclass(frozen=True, slots=True)
class _Inside:
    arguments: list[str]
    descriptors: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What of the host is visible inside, as bubblewrap's arguments and as Landlock's paths."""

    system: list[str]
    hidden: list[str]
    ours: list[str]
    engine: list[str]
    devices: list[str]
    readable: tuple[str, ...]
    runnable: tuple[str, ...]
    programs: tuple[str, ...]

    @classmethod
    def of(cls, program: ManagedProgram) -> _View:
        """Look at the host. SandboxError for what is missing."""
        system = ["--ro-bind", "/usr", "/usr", "--dir", "/sys"]
        runnable = ["/usr", _OURS]
        for name in _SYSTEM:
            path = Path(name)
            if path.is_symlink():
                system += ["--symlink", str(path.readlink()), name]
            elif path.is_dir():
                system += ["--ro-bind", name, name]
                runnable.append(name)
        for name in (*_LINKER, *_PROCESSORS):
            system += ["--ro-bind-try", name, name]
        if len(program.gpus) > 1:
            for name in _INTERCONNECT:
                system += ["--ro-bind-try", name, name]
        roots = [str(root) for root in program.roots]
        for root in program.roots:
            if not root.is_absolute() or not root.is_dir():
                raise SandboxError(
                    f"the engine's directory {root} is not there", code="sandbox.root"
                )
        engine = [part for root in roots for part in ("--ro-bind", root, root)]
        for inside, path in sorted(program.files.items()):
            source = bind_source(path)
            engine += ["--ro-bind", str(source), inside]
        tops = {inside.split("/")[1] for inside in (*program.files, *program.texts)}
        return cls(
            system=system,
            hidden=_hidden(),
            ours=_ours(),
            engine=engine,
            devices=_devices(program.gpus),
            readable=("/proc", "/etc", "/sys", *(f"/{name}" for name in sorted(tops - {"etc"}))),
            runnable=(*runnable, *roots),
            programs=tuple(f"{root}/bin" for root in roots),
        )


def _hidden() -> list[str]:
    """A device that does not open there, since bubblewrap mounts without any, over each account."""
    shown = [f"/proc/{name}" for name in _ACCOUNTS if Path("/proc", name).exists()]
    return [part for path in shown for part in ("--ro-bind", "/dev/null", path)]


def _ours() -> list[str]:
    """The interpreter that confines, its standard library, and the program it runs."""
    runtime = libraries.find_runtime()
    native = (
        *(path for path, _ in runtime.binds if path.is_file()),
        *libraries.stdlib_extensions(_EXTENSIONS),
    )
    here = Path(__file__).parent
    binds = [
        *((path, f"{_OURS}{inside}") for path, inside in runtime.binds),
        *(
            (path, f"{_OURS}{inside}")
            for path, inside in libraries.shared_libraries(native)
            if inside.startswith("/lib/")  # the dynamic linker is the system's, where it lies
        ),
        (here / "managed_boot.py", f"{_OURS}/app/managed_boot.py"),
        *((here / part, f"{_OURS}/app/cloister/engine/{part}") for part in _PARTS),
    ]
    arguments = [part for path, at in binds for part in ("--ro-bind", str(path.resolve()), at)]
    for inside in runtime.hidden:
        hidden = f"{_OURS}{inside}"
        arguments += ["--size", "4096", "--tmpfs", hidden, "--remount-ro", hidden]
    return arguments


def _devices(gpus: tuple[int, ...]) -> list[str]:
    names = list(_DEVICES)
    if gpus:
        names += ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in gpus)]
    missing = [name for name in names if not Path("/dev", name).exists()]
    if missing:
        raise SandboxError(
            f"there is no /dev/{missing[0]}: is the GPU's driver loaded, and the device's number "
            "right?",
            code="sandbox.device",
        )
    arguments = [part for name in names for part in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1")):
        arguments += ["--symlink", target, f"/dev/{name}"]
    return arguments


def _check_interconnect(program: ManagedProgram) -> None:
    """Several GPUs find each other by PCI's tree in ``/sys``, whose files root may open all."""
    if len(program.gpus) > 1 and os.geteuid() == 0:
        raise SandboxError(
            "an engine with several GPUs is not run by root: it has to see the machine's PCI "
            "devices, and root could read their memory. Run the worker as an ordinary user",
            code="sandbox.root_user",
        )


@contextlib.contextmanager
def _stored(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from, however much it is: a pipe holds 64 KiB."""
    with os.fdopen(os.memfd_create("cloister", os.MFD_CLOEXEC), "r+b") as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


@contextlib.contextmanager
def _piped(content: bytes) -> Iterator[int]:
    descriptor = spawning.pipe_with(content)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
