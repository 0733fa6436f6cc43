"""Time as a broker sees it: wall time that nobody can turn back.

The clock of a sealed broker belongs to the host. Wall time is read once; from then on a steady
clock carries it forward, so that no token or challenge lives longer because a clock was set back.
A restart may not begin before the last entry of the audit log either.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def steady() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts those."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class SteadyWall:
    """Unix time in seconds, from one reading of the wall clock."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady,
        not_before: float = 0.0,
    ) -> None:
        """`not_before` is what is known to be past: the time of the last audit entry."""
        self._steady = steady
        self._offset = max(wall(), not_before) - steady()

    def __call__(self) -> float:
        """Now."""
        return self._offset + self._steady()
