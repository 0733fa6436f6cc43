"""What the kernel says about processes, for tests that leave none behind."""

from __future__ import annotations

import contextlib
from pathlib import Path


def processes(outer: int) -> dict[int, str]:
    """The commands of `outer` and all its descendants, by process id."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                name, _, rest = stat.partition("(")[2].rpartition(")")
                parents[int(entry.name)] = (int(rest.split()[1]), name)
    found = {outer}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {pid: parents[pid][1] for pid in found if pid in parents}


def mentioning(text: str) -> list[int]:
    """The ids of the processes that were started with `text` among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
