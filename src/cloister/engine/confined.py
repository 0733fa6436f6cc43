"""A program that runs confined, seen from the worker's side.

The worker holds one control socket (fixed words in, nothing out but its closing), the drained
output, and a descriptor of the program's private socket directory. The directory lies on a
tmpfs of the sandbox's own mount namespace, so nothing appears on the host's disk and no other
process of the host can reach the engine by a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cloister.engine import status, warden
from cloister.errors import EngineError, SandboxError

_READ: Final = 65_536
_PAUSE: Final = 0.05  # seconds between reads: a program that floods its output blocks itself
_EARLY: Final = 4_096  # bytes of output kept until the first word, for `explain`
_END: Final = 5.0  # seconds for a killed program to be gone
_FORK: Final = 2.0  # seconds until bubblewrap has forked; it takes less than 0.02
_FIRST: Final = re.compile(rb'"child-pid": *([0-9]{1,10})\b')  # in what `--info-fd` gives

DESCRIPTORS: Final = Path("/proc/self/fd")


def opened_files(files: Mapping[str, Path]) -> list[tuple[str, int]]:
    """Those of `files` that are named below `DESCRIPTORS`, with their descriptors."""
    return [
        (inside, int(path.name))
        for inside, path in sorted(files.items())
        if path.is_relative_to(DESCRIPTORS)
    ]


def bind_source(path: Path) -> Path:
    """What bubblewrap is told to bind for `path`.

    Of a descriptor bubblewrap finds the path itself, by its own descriptor of the same number;
    what it bound is compared inside (`cloister.engine.shown`).
    """
    return path if path.is_relative_to(DESCRIPTORS) else path.resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A Python program to run confined.

    It is called with the control socket's descriptor, the socket directory and `arguments`.
    `packages` are importable, `files` are readable at the given paths inside (below
    ``/data``), `native` are files whose shared libraries must be there. A file that was opened
    already is named below `DESCRIPTORS`, by a descriptor in `inherited`: what is then read is
    what was opened, or the program does not start.

    `memory` bounds what it may fill (private writable memory, stacks included) and `addresses`
    all that it may map, mapped files and reservations included, both in bytes; `threads` and
    `descriptors` are counts. 0 is no bound.
    """

    script: Path
    arguments: tuple[str, ...] = ()
    packages: tuple[Path, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    native: tuple[Path, ...] = ()
    inherited: tuple[int, ...] = ()
    memory: int = 0
    addresses: int = 0
    threads: int = 256
    descriptors: int = 1_280

    @property
    def bounds(self) -> str:
        """The four of them as `cloister.engine.confine` takes them."""
        return f"{self.memory},{self.addresses},{self.threads},{self.descriptors}"


class Isolation(Protocol):
    """A way to run a program so that it can reach nothing but its socket directory."""

    def describe(self) -> Mapping[str, object]:
        """What isolates the program, for the measured configuration."""

    def path_of(self, program: Program, inside: str) -> str:
        """The path under which the program finds what `Program.files` calls `inside`."""

    async def spawn(self, program: Program) -> Confined:
        """Start it; return when it is confined. SandboxError if any layer is missing."""


class Confined:
    """A running confined program. Made by an `Isolation`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        *,
        info: int | None = None,
        threads: int = 0,
        cleanup: contextlib.ExitStack | None = None,
    ) -> None:
        self._process = process
        self._control = control
        self._cleanup = cleanup or contextlib.ExitStack()
        self._descriptors: list[int] = [] if info is None else [info]
        self._info = info
        self._inner: int | None = None  # pidfd of the sandbox's first process
        self._directory: int | None = None
        self._sealed = False
        self._threads = threads
        self._program = 0  # the program's own process
        self._warden: asyncio.Task[None] | None = None
        self._early = b""
        self._keep_early = True
        self.output_bytes = 0  # how much it has written to stdout and stderr, for metrics
        self._drain = asyncio.create_task(self._drain_output())

    @property
    def pid(self) -> int:
        """The process to wait for: bubblewrap's, outside the sandbox."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    @property
    def early_output(self) -> bytes:
        """What was written before the first word: bubblewrap's and the interpreter's."""
        return self._early

    async def _drain_output(self) -> None:
        stream = self._process.stdout
        while stream is not None and (data := await stream.read(_READ)):
            self.output_bytes += len(data)
            if self._keep_early and len(self._early) < _EARLY:
                self._early += data[: _EARLY - len(self._early)]
            del data
            await asyncio.sleep(_PAUSE)

    async def receive_directory(self) -> None:
        """Wait for the first word and keep the descriptor that comes with it.

        EngineError if the program ends or says anything else.
        """
        await _readable(self._control)
        word, descriptors, self._program = _first_word(self._control)
        self._descriptors.extend(descriptors)
        unseen = self._threads and not self._program  # nobody could count its threads
        if word != status.DIRECTORY or len(descriptors) != 1 or unseen:
            raise EngineError("the confined program did not start", code="engine.start")
        self._keep_early = False
        self._early = b""
        if not stat.S_ISDIR(os.fstat(descriptors[0]).st_mode):
            raise EngineError("the confined program broke its protocol", code="engine.start")
        self._directory = descriptors[0]
        self._inner = self._find_inner()
        if self._inner is not None:
            self._descriptors.append(self._inner)
            self._warden = asyncio.create_task(warden.keep_watch(self._excess, self._kill))

    def _excess(self) -> str | None:
        """What the program has too much of, of what only a look can bound."""
        if self._threads and warden.threads_of(self._program) > self._threads:
            return "threads"
        if self._directory is None or self._sealed:
            return None
        return "files" if warden.entries_of(self._directory) > warden.MAX_ENTRIES else None

    def _find_inner(self) -> int | None:
        """Read from bubblewrap which process is the sandbox's first, and hold on to it.

        Killing that one ends all inside and lets bubblewrap collect it; killing bubblewrap
        would leave a dead process to whoever adopts it.
        """
        if self._info is None:
            return None
        try:
            found = _FIRST.search(os.read(self._info, 4_096))
            if found is not None:
                return os.pidfd_open(int(found[1]))
        except ProcessLookupError:
            return None  # it has ended, and all inside with it; what it said is still to be read
        except OSError:
            pass
        raise EngineError("the sandbox's first process is gone", code="engine.start")

    async def word(self) -> bytes:
        """Wait for the next word; EngineError for one outside the vocabulary, or for an end."""
        await _readable(self._control)
        # Plain recv: descriptors that come along are closed by the kernel.
        word = self._control.recv(status.MAX_WORD + 1)
        if word in status.REASONS:
            raise EngineError(
                f"the engine cannot start: {status.REASONS[word]}", code="engine.start"
            )
        if word in (status.READY, status.UNCONFINED) or word in status.CONFINED:
            return word
        raise EngineError("the confined program ended or broke its protocol", code="engine.start")

    def open_socket(self, name: str) -> str:
        """Pin the socket `name` of the socket directory and return a path to connect to.

        The path goes through this process's own descriptor of the socket itself: whatever the
        program later puts in its place (a link to a socket of the host, say) is not followed.
        From now on nothing more can be made in the directory.
        """
        directory = self._directory
        if directory is None:
            raise RuntimeError("the program has no socket directory yet")
        try:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
        except OSError:
            raise EngineError("the engine has no socket", code="engine.start") from None
        self._descriptors.append(descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_dev != os.fstat(directory).st_dev:
            raise EngineError("the engine's socket is not a socket", code="engine.start")
        self._seal(directory)
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    def _seal(self, directory: int) -> None:
        if self._inner is None:
            if self._info is None:  # without a sandbox the directory is the host's, and cleaned up
                return
            raise EngineError("the sandbox's first process is gone", code="engine.start")
        try:
            Path(f"/proc/self/fd/{directory}").chmod(0o500)
        except OSError:
            raise SandboxError(
                "the engine's socket directory cannot be sealed", code="sandbox.start"
            ) from None
        self._sealed = True
        if self._warden is not None and not self._threads:
            self._warden.cancel()  # nothing is left to be counted

    async def watch(self) -> None:
        """Return when the program has ended; end it if it says another word."""
        reading = asyncio.create_task(_readable(self._control))
        waiting = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        await self.aclose()

    async def wait(self) -> int:
        """Wait for the process to end and return its status."""
        return await self._process.wait()

    async def _await_inner(self) -> None:
        """Hold the sandbox's first process, if bubblewrap has made or is about to make one.

        A bubblewrap that is killed just after it forked leaves that process behind: it asks to
        be killed with its parent only when the parent is gone already, and waits for it for ever.
        """
        if self._inner is not None or self._info is None or not self.alive:
            return
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_FORK):
                await _readable(self._info)
            self._inner = self._find_inner()
            if self._inner is not None:
                self._descriptors.append(self._inner)

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if self._inner is not None:
                    signal.pidfd_send_signal(self._inner, signal.SIGKILL)
                    # Whoever stopped the sandbox may have stopped bubblewrap, which has to wait.
                    self._process.send_signal(signal.SIGCONT)
                else:
                    self._process.kill()

    async def aclose(self) -> None:
        """Kill the program and wait until no process of it is left. Safe to call twice."""
        if self._warden is not None:
            self._warden.cancel()
        try:
            try:
                await self._await_inner()
            finally:
                self._kill()
            async with asyncio.timeout(_END):
                await self._process.wait()
                # The pipe ends when the last process that could write to it is gone.
                await self._drain
        except TimeoutError:
            self._drain.cancel()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # bubblewrap itself; what is inside dies with it
            raise SandboxError(
                "the engine's sandbox did not end when it was killed", code="sandbox.end"
            ) from None
        finally:
            self._control.close()
            self._inner = self._info = None
            while self._descriptors:
                os.close(self._descriptors.pop())
            self._cleanup.close()


async def _readable(descriptor: socket.socket | int) -> None:
    """Return when something can be read from it, its end included."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _first_word(control: socket.socket) -> tuple[bytes, list[int], int]:
    """Receive one word, at most one descriptor with it, and which process sent it.

    The kernel says which (SO_PASSCRED): the program itself could not lie about it.
    """
    credentials = struct.Struct("=iII")  # struct ucred: pid, uid, gid
    room = socket.CMSG_SPACE(credentials.size) + socket.CMSG_SPACE(4)
    word, ancillary, _, _ = control.recvmsg(status.MAX_WORD, room)
    descriptors: list[int] = []
    sender = 0
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"={len(data) // 4}i", data)
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender = credentials.unpack(data)[0]
    return word, descriptors, sender
