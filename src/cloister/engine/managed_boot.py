"""First program inside the managed sandbox: gives up what is left, then starts the engine.

Runs inside the sandbox on the worker's own interpreter, so it imports the standard library only.
It stays beside the engine for as long as that runs: it passes connections on where the engine
knows TCP only, says when the engine accepts some, and ends with it, which ends everything inside.
It speaks on one socket, in words of a fixed vocabulary (`cloister.engine.status`), and writes
nothing to its output.

Usage: ``managed_boot.py CONTROL_FD PLAN_FD``. The plan, as JSON: ``arguments`` and ``environment``
of the engine, ``port`` (where it listens on the loopback; null if it makes the socket itself),
``directories`` to make, ``processes`` (limit, 0 for none), ``rights`` (path → Landlock rights),
``shown`` (the files that the worker had opened, as `cloister.engine.shown` takes them).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import socket
import sys
from typing import Any

from cloister.engine import landlock, shown
from cloister.engine.managed_relay import Relay

SOCKETS = "/run/engine"
SOCKET = f"{SOCKETS}/engine.sock"
_PR_SET_DUMPABLE = 4
_LOOK_EVERY = 0.05  # seconds between tries to connect while the engine loads


def confine(plan: dict[str, Any]) -> int:
    """Give up what no engine needs; return the Landlock ABI that is enforced."""
    # What is executed is dumpable again. One byte is too little for a file, and the only limit at
    # which the kernel hands nothing to a program that ``core_pattern`` names (fs/coredump.c).
    core = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    if plan["processes"]:
        limit = plan["processes"]
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    # Not inherited by what is executed; it keeps this process from the engine's reach.
    if libc.prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "the process stays dumpable")
    return landlock.enforce(list(plan["rights"].items()), tcp=True)


async def accepts(port: int | None) -> bool:
    """Whether the engine takes connections by now."""
    try:
        if port is None:
            _, writer = await asyncio.open_unix_connection(SOCKET)
        else:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def serve(control: socket.socket, plan: dict[str, Any]) -> None:
    """Run the engine until it ends, or until the worker closes the control socket."""
    try:
        engine = await asyncio.create_subprocess_exec(
            *plan["arguments"],
            env=plan["environment"],
            cwd="/tmp",  # noqa: S108 - the sandbox's own
            stdin=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        control.send(b"program-missing")
        return
    ended = asyncio.create_task(engine.wait())
    told = asyncio.get_running_loop().create_future()
    # It says nothing, ever: that there is something to read means that it has closed.
    asyncio.get_running_loop().add_reader(control, _wake, told)
    port: int | None = plan["port"]
    while not await accepts(port):
        await asyncio.wait({ended, told}, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() or told.done():
            if ended.done():
                control.send(b"program-ended")
            return
    relay = None if port is None else await Relay.open(SOCKET, port)
    control.send(b"ready")
    await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
    del relay


def main() -> None:
    """Announce the socket directory, confine, announce that, and run the engine."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    directory = os.open(SOCKETS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    socket.send_fds(control, [b"directory"], [directory])
    os.close(directory)
    try:
        with open(int(sys.argv[2]), "rb") as file:  # noqa: PTH123 - a descriptor
            plan = json.load(file)
        shown.check(plan["shown"])
        for path in plan["directories"]:
            os.makedirs(path, exist_ok=True)  # noqa: PTH103 - no pathlib in here
        version = confine(plan)
    except shown.ExchangedError:
        control.send(b"file-exchanged")
        os._exit(3)
    except (OSError, ValueError, KeyError):
        control.send(b"confine-failed")
        os._exit(3)
    control.send(b"confined-%d" % version)
    asyncio.run(serve(control, plan))


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # whatever waits inside ends with this process
