"""What stands in the memory of this test's child processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from benchmarks.memory import count_in

from support.processes import processes


def children() -> set[int]:
    """All descendants of this process."""
    return processes(os.getpid()).keys() - {os.getpid()}


def count_in_all(pids: Iterable[int], marker: bytes) -> int:
    """How often `marker` stands in the writable memory of processes, those gone not counted.

    Skips the test where this user may not look: that it is not there would be no finding.
    """
    try:
        return sum(count_in(pid, marker) for pid in pids)
    except PermissionError:
        pytest.skip("reading another process's memory needs CAP_SYS_PTRACE: run as root")
