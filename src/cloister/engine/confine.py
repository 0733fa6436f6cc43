"""First program inside the sandbox: gives up what is left, then runs the engine's program.

Runs inside the sandbox, so it imports the standard library only, and as little of it as
possible. Everything before `runpy` is this project's code; everything after it may be hostile
and finds the door closed. It speaks on one socket, in words of a fixed vocabulary
(`cloister.engine.status`); it writes nothing to its output.

Usage: ``confine.py CONTROL_FD BOUNDS SHOWN SOCKET_DIRECTORY PROGRAM [ARGUMENTS...]``. BOUNDS are
four numbers with commas between them: bytes of memory, bytes of addresses, threads, descriptors; 0
is no limit. SHOWN are the files that the worker had opened (`cloister.engine.shown`). With
``unsafe`` for BOUNDS nothing at all is given up.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import socket
import sys

from cloister.engine import landlock, seccomp, shown

_PR_SET_DUMPABLE = 4
_READABLE = ("/app", "/data", "/lib", "/lib64", "/python")
_NICE = 5  # a program that spins leaves the worker three parts of four of a contended core


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _set_limits(memory: int, addresses: int, threads: int, descriptors: int) -> None:
    """Bound what the kernel counts. Nothing here can be raised again."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)  # not a byte into any file
    _limit(resource.RLIMIT_MEMLOCK, 0)
    if memory:
        _limit(resource.RLIMIT_DATA, memory)
    if addresses:
        _limit(resource.RLIMIT_AS, addresses)
    if threads:
        # The kernel exempts root, whom the sandbox maps too: see `cloister.engine.warden`.
        _limit(resource.RLIMIT_NPROC, threads)
    if descriptors:
        _limit(resource.RLIMIT_NOFILE, descriptors)


def confine(socket_directory: str, bounds: tuple[int, int, int, int]) -> int:
    """Give up all but what an engine needs; return the Landlock ABI that is enforced."""
    _set_limits(*bounds)
    os.nice(_NICE)
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "the process stays dumpable")
    version = landlock.restrict(
        readable=[path for path in _READABLE if os.path.isdir(path)],  # noqa: PTH112
        sockets_in=[socket_directory],
    )
    arch = seccomp.this_arch(os.uname().machine)
    if arch is None:
        raise OSError(0, "no system-call table for this machine")
    seccomp.install(seccomp.assemble(seccomp.RUN_RULES, arch), arch)
    return version


def _close_all_but(control: int) -> None:
    """Close what the worker had open for bubblewrap's eyes only."""
    os.closerange(3, control)
    os.closerange(control + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def main() -> None:
    """Announce the socket directory, confine, announce that, and run the program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    mode, files, socket_directory, program = sys.argv[2:6]
    directory = os.open(socket_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    socket.send_fds(control, [b"directory"], [directory])
    os.close(directory)
    if mode == "unsafe":
        control.send(b"unconfined")
    else:
        try:
            memory, addresses, threads, descriptors = map(int, mode.split(","))
            shown.check(files)  # while their descriptors are open
            _close_all_but(control.fileno())
            version = confine(socket_directory, (memory, addresses, threads, descriptors))
        except shown.ExchangedError:
            control.send(b"file-exchanged")
            os._exit(3)
        except (OSError, ValueError):
            control.send(b"confine-failed")
            os._exit(3)
        control.send(b"confined-%d" % version)
    sys.argv = [program, str(control.detach()), socket_directory, *sys.argv[6:]]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
