"""How often a text stands in the memory of processes, read from the kernel.

Only pages that a process has, and may write, are searched: nothing else can hold what it was
sent. Reading another process's memory needs CAP_SYS_PTRACE; PermissionError says that it lacks.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_THERE = 0b11 << 62
"""In an entry of pagemap: the page is in memory, or swapped out (proc_pid_pagemap(5))."""


def count_in(pid: int, marker: bytes) -> int:
    """How often `marker` stands in the writable memory of `pid`; 0 once the process is gone."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
        with (
            Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
            Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pages,
        ):
            return sum(
                _read(memory.fileno(), start, end).count(marker)
                for region in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) rw", maps, re.MULTILINE)
                for start, end in _runs(pages.fileno(), int(region[1], 16), int(region[2], 16))
            )
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _runs(pages: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts from `start` to `end` whose pages are there."""
    size = (end - start) // _PAGE * 8
    entries = array.array("Q", os.pread(pages, size, start // _PAGE * 8))
    at = start
    for there, run in itertools.groupby(entries, key=lambda entry: bool(entry & _THERE)):
        length = len(list(run)) * _PAGE
        if there:
            yield at, at + length
        at += length


def _read(memory: int, start: int, end: int) -> bytes:
    read = bytearray()
    with contextlib.suppress(OSError):  # unmapped meanwhile
        while start + len(read) < end:
            part = os.pread(memory, end - start - len(read), start + len(read))
            if not part:
                break
            read += part
    return bytes(read)
