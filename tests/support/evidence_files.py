"""What the tests of ``cloister verify`` and ``inspect`` on files share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cloister.testing.simulated_nitro import SimulatedNitro

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
AT = NOW.isoformat()
NITRO = SimulatedNitro(now=NOW)

Run = Callable[..., tuple[int, str, str]]
"""Runs one command; its exit status, output and errors."""
