"""Counts what no limit of the kernel bounds, and ends a program that has too many.

Two things a confined program could take from the whole machine without a system call that it
is denied: threads (RLIMIT_NPROC does not bind root, and in the sandbox of a worker that runs as
root the engine is root to the kernel's accounts), and the inodes of sockets, by binding one
after another before it is ready; afterwards its directory is sealed. What it can make between
two looks is bounded by its speed: some thousands of threads, or some megabytes of inodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_LOG = logging.getLogger("cloister.engine")
_EVERY: Final = 0.1  # seconds between looks; one costs some 30 microseconds
MAX_ENTRIES: Final = 32  # in the socket directory; an engine makes one


def threads_of(pid: int) -> int:
    """How many threads the process has, by the kernel's account; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The 20th field (proc(5)); the second is a name in parentheses that may hold anything.
    return int(stat.rpartition(b")")[2].split()[17])


def entries_of(directory: int) -> int:
    """How many inodes its file system holds besides its root; 0 if it does not say."""
    with contextlib.suppress(OSError):
        found = os.fstatvfs(directory)
        return max(0, found.f_files - found.f_ffree - 1)
    return 0


async def keep_watch(counts: Callable[[], str | None], end: Callable[[], None]) -> None:
    """Ask `counts` until it names what there is too much of; then call `end`.

    What it names is logged: a fixed word of ours.
    """
    while (excess := counts()) is None:  # noqa: ASYNC110 - it is another process that we look at
        await asyncio.sleep(_EVERY)
    _LOG.warning("the engine made too many %s and is ended", excess)
    end()
