"""Starting a program in a sandbox, whatever its profile: bubblewrap is found, the program is
started with a control socket and drained output, and nothing is handed on before it has said that
it is confined as it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.engine.confined import Confined
from cloister.errors import EngineError, SandboxError

_PATH: Final = "/usr/bin:/usr/local/bin:/bin"
_START: Final = 120.0
"""Seconds until it is confined. It takes less than 0.1; in a guest that is emulated on a machine
with other things to do, more than 20 were seen."""

#: What bubblewrap says when it cannot do its work, and what that means.
_EXPLANATIONS: Final = (
    (
        b"namespace",
        "the kernel refuses user namespaces to this process: allow them "
        "(sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, "
        "kernel.apparmor_restrict_unprivileged_userns=0), or run where nesting is permitted "
        "(in a chroot it never is)",
    ),
    (b"uid map", "the kernel refuses a user mapping to this process (is it in a container?)"),
    (
        b"Unknown option",
        "this bubblewrap is too old: 0.5 or later is needed, and 0.8 for managed engines",
    ),
    (
        b"mount proc",
        "the kernel refuses a /proc of its own: this machine is a container that hides parts of it",
    ),
    (b"Can't find source path", "a file it needs is gone or not readable for this user"),
    (b"Permission denied", "a file it needs is not readable for this user"),
    (b"shared libraries", "a shared library is missing inside"),
)


def find_bwrap(named: str | None) -> str:
    """Return the path of bubblewrap: `named`, or where the system has it. SandboxError if none."""
    found = named or shutil.which("bwrap", path=_PATH)
    if found is None or not Path(found).is_file():
        raise SandboxError(
            "bubblewrap is not installed, and the engine does not run without its sandbox "
            "(Debian: apt-get install bubblewrap)",
            code="sandbox.bubblewrap",
        )
    return found


def pipe_with(data: bytes) -> int:
    """Return the reading end of a pipe that holds `data` (less than a pipe's capacity)."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
    finally:
        os.close(writing)
    return reading


async def start(
    arguments: list[str],
    tail: list[str],
    *,
    keep: tuple[int, ...] = (),
    info: int | None = None,
    threads: int = 0,
    cleanup: contextlib.ExitStack | None = None,
) -> Confined:
    """Start a process with a control socket, no environment and its output in a pipe.

    With `threads` the program is ended when it has more of them. The descriptor `info` and
    `cleanup` are taken over, whatever comes of it.
    """
    with contextlib.ExitStack() as undo:  # whatever ends this early
        if cleanup is not None:
            undo.push(cleanup)
        if info is not None:
            undo.callback(os.close, info)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.enter_context(ours)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # so that it knows who speaks
        with theirs:
            starting = asyncio.create_task(
                asyncio.create_subprocess_exec(
                    *arguments,
                    str(theirs.fileno()),
                    *tail,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env={},
                    pass_fds=(theirs.fileno(), *keep),
                )
            )
            cancelled = await _finish(starting)
            try:
                process = starting.result()
            except OSError as error:
                raise SandboxError(
                    f"the sandbox's program does not start (errno {error.errno})",
                    code="sandbox.start",
                ) from None
        undo.pop_all()
    confined = Confined(process, ours, info=info, threads=threads, cleanup=cleanup)
    if cancelled is not None:
        await confined.aclose()
        raise cancelled
    return confined


async def _finish(task: asyncio.Task[asyncio.subprocess.Process]) -> BaseException | None:
    """Wait until `task` has ended; return the cancellation that came meanwhile, if one did.

    asyncio leaves a pipe and a process behind when it is cancelled while it starts a program.
    """
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def confirm(
    confined: Confined, expected: Mapping[bytes, int] | tuple[bytes, ...], abi: int
) -> Confined:
    """Wait until the program says that it is confined as it should be; end it otherwise."""
    began = False
    try:
        async with asyncio.timeout(_START):
            await confined.receive_directory()
            began = True
            await confirm_word(confined, expected, abi)
    except TimeoutError:
        await confined.aclose()
        raise SandboxError("the sandbox did not come up in time", code="sandbox.start") from None
    except EngineError as error:
        await confined.aclose()
        why = str(error) if began else _explain(confined.early_output)
        raise SandboxError(
            f"the engine's sandbox cannot be set up: {why}",
            code="sandbox.start",
        ) from None
    except BaseException:
        await confined.aclose()
        raise
    return confined


async def confirm_word(
    confined: Confined, expected: Mapping[bytes, int] | tuple[bytes, ...], abi: int
) -> None:
    """Take the program's word for how it is confined; SandboxError for any but the expected."""
    word = await confined.word()
    if word not in expected:
        raise SandboxError("the engine is not confined as it should be", code="sandbox.layers")
    if isinstance(expected, Mapping) and expected[word] != abi:
        raise SandboxError("Landlock did not take hold as expected", code="sandbox.landlock")


def _explain(output: bytes) -> str:
    """Turn what bubblewrap wrote into a sentence of ours; its text is never repeated."""
    for sign, sentence in _EXPLANATIONS:
        if sign in output:
            return sentence
    return "it ended before it was complete; run bwrap by hand to see why"
