"""What a program holds on to: descriptors, tasks, threads, memory, and how memory develops."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

MIB: Final = float(1 << 20)
_PROC: Final = Path("/proc")
_PAGE: Final = resource.getpagesize()
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What is there at one moment when nobody asks anything."""

    processes: int
    worker_fds: int
    worker_tasks: int
    worker_threads: int
    engines: int
    engine_threads: int
    """Of one engine; the largest number."""
    engine_fds: int | None
    """Likewise. None where this user may not look into the engine's process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Resident memory at one moment, in bytes; `at` in seconds since the beginning."""

    at: float
    worker: int
    engine: int
    """Of the largest engine process: there may be several, and new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How a series develops after its warm-up. Bytes."""

    level: float
    growth: float
    """The slope times the length of the series: what it would grow by, noise apart."""
    seconds: float
    """How long the series is."""

    @property
    def per_hour(self) -> float:
        """The slope, in bytes per hour."""
        return 3600 * self.growth / self.seconds if self.seconds else 0.0


def trend(points: Sequence[tuple[float, float]], *, warm_up: float) -> Trend:
    """The trend of (seconds, bytes), without the first share `warm_up` of the time.

    The slope is Theil's and Sen's: the median of the slopes between all pairs, which a quarter
    of outliers does not move. ValueError for fewer than three points.
    """
    if not points:
        raise ValueError("a series has points")
    begin, end = points[0][0], points[-1][0]
    kept = [point for point in points if point[0] >= begin + warm_up * (end - begin)]
    if len(kept) < 3:
        raise ValueError("a trend needs three points")
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(kept)
        for later in kept[index + 1 :]
        if later[0] > earlier[0]
    ]
    seconds = kept[-1][0] - kept[0][0]
    return Trend(
        level=median(value for _, value in kept),
        growth=median(slopes) * seconds,
        seconds=seconds,
    )


def resident(pid: int) -> int:
    """Resident memory in bytes; 0 if it has ended."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def threads(pid: int) -> int:
    """The number of threads; 0 if it has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("Threads:")).split()[1])


def descriptors(pid: int) -> int | None:
    """The number of open descriptors; None if this user may not look."""
    try:
        return len(list((_PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return None


def cpu_seconds(pid: int) -> float:
    """CPU seconds, user and system, in steps of the kernel's ticks; 0 if it has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def worker_of(pids: dict[int, str]) -> int:
    """The worker among the processes of a program."""
    for pid in pids:
        command = (_PROC / str(pid) / "cmdline").read_bytes()
        if b"attester/_start.py" in command:
            return pid
    raise LookupError("the program has no worker")
