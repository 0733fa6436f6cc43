"""What machine this is, whether it is quiet, and what processes spent."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.harness import Sample

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_PACKAGES = (
    "cloister",
    "cryptography",
    "httpx2",
    "httpx",
    "openai",
    "starlette",
    "tinfoil-ehbp",
    "uvicorn",
    "uvloop",
    "httptools",
    "xllamacpp",
)
# A share of one core. Below it our own ratios moved by less than their spread.
FOREIGN_LIMIT = 0.10


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def environment() -> dict[str, object]:
    """Record what a reader needs to judge the numbers."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load_average": os.getloadavg()[0],
    }


def machine_busy() -> float:
    """CPU seconds of all processes, and those that the host took, since the machine started.

    Interrupts are left out: what they do for our own sockets is charged to no process.
    """
    numbers = [
        int(one) for one in (_PROC / "stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    ]
    user, nice, system, *_, steal = numbers[:8]
    return (user + nice + system + steal) / _TICKS


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu: float
    cpu_of_dead_children: float


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        own, dead = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        found[int(entry.name)] = _Process(int(fields[1]), own / _TICKS, dead / _TICKS)
    return found


def family_cpu(root: int | None = None) -> float:
    """CPU seconds of process `root` (this one by default) and everything it ever started."""
    processes = _processes()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    total = 0.0
    waiting = [os.getpid() if root is None else root]
    while waiting:
        pid = waiting.pop()
        if pid in processes:
            total += processes[pid].cpu + processes[pid].cpu_of_dead_children
            waiting += children.get(pid, ())
    return total


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, of exactly these processes (10 ms resolution)."""
    processes = _processes()
    return sum(processes[pid].cpu for pid in pids if pid in processes)


def children_of(root: int) -> list[int]:
    """`root` and all its living descendants."""
    processes = _processes()
    found = [root]
    for pid in found:
        found += [one for one, process in processes.items() if process.parent == pid]
    return found


class Quiet:
    """Waits for other work to pause, and notices it when it does not.

    Load averages count our own work and lag behind by minutes, so this looks at CPU seconds that
    were spent by processes outside our own family: before a repetition over a short sleep, and
    during it. All waiting together is bounded by `patience` seconds.
    """

    def __init__(self, *, patience: float, limit: float = FOREIGN_LIMIT) -> None:
        self._left = patience
        self._limit = limit
        self.worst = 0.0
        self.waited = 0.0

    def settle(self) -> None:
        """Return when the machine was quiet for a moment, or patience has run out."""
        while True:
            started, ours, all_of_it = time.monotonic(), family_cpu(), machine_busy()
            time.sleep(0.25)
            elapsed = time.monotonic() - started
            foreign = ((machine_busy() - all_of_it) - (family_cpu() - ours)) / elapsed
            if foreign <= self._limit or self._left <= 0:
                return
            time.sleep(1.0)
            spent = time.monotonic() - started
            self._left -= spent
            self.waited += spent

    def watch(self, run: Callable[[], Sample]) -> tuple[Sample, bool]:
        """Run once; say whether other processes took more than the limit meanwhile.

        Over less than half a second the kernel's 10 ms ticks say nothing, so nothing is said.
        """
        started, ours, all_of_it = time.monotonic(), family_cpu(), machine_busy()
        sample = run()
        elapsed = time.monotonic() - started
        if elapsed < 0.5:
            return sample, False
        foreign = ((machine_busy() - all_of_it) - (family_cpu() - ours)) / elapsed
        self.worst = max(self.worst, foreign)
        return sample, foreign > self._limit
