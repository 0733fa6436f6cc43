"""The engine's sandbox: bubblewrap, a system-call filter and Landlock, laid over each other.

Inside there is no network, no other process, no file but the interpreter, its standard
library, the engine's own package and the model (all read-only), no ``/proc``, no ``/dev``, no
``/sys``, no environment, no capability, and no place to write a byte: the one directory that
can be changed is a private tmpfs in which a socket may be made. The interpreter starts with
`cloister.engine.confine`, which gives up the rest before it runs the program.

Works as root and as an ordinary user. It needs bubblewrap and user namespaces; without them
nothing starts, and the error says what to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.engine import landlock, libraries, seccomp, shown, spawning, status
from cloister.engine.confined import Confined, Program, bind_source, opened_files
from cloister.errors import SandboxError

_LOG = logging.getLogger("cloister.engine")
_SOCKETS: Final = "/run/engine"
_TMPFS_BYTES: Final = 65_536  # room for a socket's inode, not for text
_NOBODY: Final = "65534"
_EXTENSIONS: Final = ("_ctypes",)  # of the standard library, with libraries of their own
_PARTS: Final = ("landlock.py", "seccomp.py", "shown.py")

#: No environment, no site-packages, nothing written.
_FLAGS: Final = ("-E", "-s", "-S", "-B")
#: And no compiled code beside the sources: only these are measured, and nothing lies where this
#: prefix points.
_SOURCES_ONLY: Final = ("-X", "pycache_prefix=/nonexistent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Bubblewrap with seccomp (both required) and Landlock (used where the kernel has it).

    `require_landlock` refuses to start on a kernel without Landlock; otherwise its absence
    shows in `describe`. `landlock_abi` is probed when the object is made.

    `compiled` lets the program read compiled code beside its sources, which is right only where
    both were measured: on the root of a machine image.
    """

    require_landlock: bool = False
    compiled: bool = False
    bwrap: str | None = None
    landlock_abi: int = field(default_factory=landlock.abi)

    def describe(self) -> Mapping[str, object]:
        """Name the layers, outermost first."""
        return {
            "mode": "sandbox",
            "layers": [
                "namespaces",
                "minimal-read-only-root",
                "no-capabilities",
                "no-core-dumps",
                "seccomp",
                *landlock.layers(self.landlock_abi),
            ],
        }

    def path_of(self, program: Program, inside: str) -> str:
        """Files keep the name they are given."""
        return f"/data/{inside}"

    async def spawn(self, program: Program) -> Confined:
        """Start `program`; return when it is confined with every layer `describe` names."""
        arch = seccomp.this_arch(os.uname().machine)
        if arch is None:
            raise SandboxError(
                f"no system-call filter exists for {os.uname().machine}; x86_64 and aarch64 do",
                code="sandbox.arch",
            )
        if self.require_landlock and not self.landlock_abi:
            raise SandboxError(
                "this kernel has no Landlock, which the policy requires (Linux 5.13 or later, "
                "with 'landlock' in its list of security modules)",
                code="sandbox.landlock",
            )
        bwrap = spawning.find_bwrap(self.bwrap)
        binds = await asyncio.to_thread(_plan_binds, program)
        filter_fd = spawning.pipe_with(seccomp.assemble(seccomp.BOOT_RULES, arch))
        info, info_end = os.pipe()
        try:
            arguments = [bwrap, *_bwrap_arguments(binds, filter_fd, info_end), "--"]
            flags = _FLAGS if self.compiled else (*_FLAGS, *_SOURCES_ONLY)
            arguments += ["/python/bin/python3", *flags, "/app/confine.py"]
            tail = [
                program.bounds,
                shown.encode(
                    (self.path_of(program, name), descriptor)
                    for name, descriptor in opened_files(program.files)
                ),
                _SOCKETS,
                f"/app/{program.script.name}",
                *program.arguments,
            ]
            keep = (filter_fd, info_end, *program.inherited)
            # The kernel's own limit binds everybody but root.
            watched = program.threads if os.geteuid() == 0 else 0
            confined = await spawning.start(arguments, tail, keep=keep, info=info, threads=watched)
        finally:
            os.close(filter_fd)
            os.close(info_end)
        return await spawning.confirm(confined, status.CONFINED, self.landlock_abi)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeNoSandbox:
    """Runs the program with the worker's own rights. Nothing keeps it from anything.

    For machines on which the sandbox cannot be had and for looking into faults. It says so in
    the log and in the measured configuration.
    """

    def describe(self) -> Mapping[str, object]:
        """Say that there is none."""
        return {"mode": "none (unsafe)", "layers": []}

    def path_of(self, program: Program, inside: str) -> str:
        """Files lie where they lie on the host."""
        return str(program.files[inside].resolve())

    async def spawn(self, program: Program) -> Confined:
        """Start `program` beside the worker, without any isolation."""
        _LOG.warning("the engine runs WITHOUT a sandbox (unsafe): it can read and send anything")
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="cloister-"))
            folders = {str(Path(__file__).parents[2]), *(str(p.parent) for p in program.packages)}
            boot = (
                "import runpy, sys\n"
                f"sys.path[:0] = {sorted(folders)!r}\n"
                "runpy.run_module('cloister.engine.confine', run_name='__main__', alter_sys=True)\n"
            )
            arguments = [sys.executable, *_FLAGS, *_SOURCES_ONLY, "-c", boot]
            tail = ["unsafe", "", directory, str(program.script), *program.arguments]
            confined = await spawning.start(arguments, tail, cleanup=stack.pop_all())
        return await spawning.confirm(confined, (status.UNCONFINED,), 0)


def _plan_binds(program: Program) -> list[str]:
    """Return bubblewrap's arguments for everything that is visible inside."""
    runtime = libraries.find_runtime()
    native = (
        *(path for path, _ in runtime.binds if path.is_file()),
        *libraries.stdlib_extensions(_EXTENSIONS),
        *program.native,
    )
    here = Path(__file__).parent
    binds = [
        *runtime.binds,
        *libraries.shared_libraries(native),
        (here / "confine.py", "/app/confine.py"),
        *((here / part, f"/app/cloister/engine/{part}") for part in _PARTS),
        (program.script, f"/app/{program.script.name}"),
        *((package, f"/app/{package.name}") for package in program.packages),
        *((path, f"/data/{name}") for name, path in sorted(program.files.items())),
    ]
    arguments: list[str] = []
    for source, inside in binds:
        arguments += ["--ro-bind", str(bind_source(source)), inside]
    for inside in runtime.hidden:
        arguments += ["--size", "4096", "--tmpfs", inside, "--remount-ro", inside]
    return arguments


def _bwrap_arguments(binds: list[str], filter_fd: int, info_fd: int) -> list[str]:
    return [
        "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
        "--unshare-cgroup-try", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "engine",
        "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--clearenv", "--setenv", "LD_LIBRARY_PATH", "/lib",
        *binds,
        "--perms", "0700", "--size", str(_TMPFS_BYTES), "--tmpfs", _SOCKETS,
        "--remount-ro", "/", "--chdir", "/",
        "--seccomp", str(filter_fd), "--info-fd", str(info_fd),
    ]  # fmt: skip
