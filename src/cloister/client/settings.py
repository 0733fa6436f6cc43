"""What a client may be told, with the reason for every default."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB


class Receipts(enum.StrEnum):
    """What a client does about the receipt of a successful POST."""

    REQUIRED = "required"
    """An answer without a receipt that verifies is an error."""
    OPTIONAL = "optional"
    """A receipt that is there must verify; an answer may come without one."""


def _steady() -> float:
    # CLOCK_BOOTTIME goes on counting while the machine sleeps, so that a cached verdict ages.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Where time and randomness come from."""

    wall: Callable[[], float] = time.time
    """Unix time in seconds."""
    steady: Callable[[], float] = _steady
    """Seconds on a clock that never goes back."""
    random: Callable[[int], bytes] = os.urandom


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverifyLimits:
    """How often an unauthenticated "unknown key" may make a client verify again.

    Whoever sits between client and worker can forge that answer. A bucket of `burst` tokens,
    one back every `refill_s`, keeps forged ones from multiplying requests for quotes; before
    each verification the client waits `delay_s`, four times as long for each token spent.
    """

    burst: int = 3
    refill_s: float = 20.0
    delay_s: float = 0.05
    refused_s: float = 1.0
    """A refusal is repeated for this long without asking for another quote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """All settings of one client. Sizes in bytes, times in seconds."""

    receipts: Receipts = Receipts.REQUIRED
    request_padding: int = KIB
    """Sealed requests are a multiple of this. A prompt's length tells much about it; 1 KiB hides
    the length of a short question and costs a long one less than it gains. 1 turns it off."""
    max_request_body: int = 31 * MIB
    """Refused before sealing; a worker takes 32 MiB of sealed request by default."""
    max_response_body: int = 256 * MIB
    max_response_head: int = 64 * KIB
    max_response_headers: int = 128
    max_report: int = MIB
    max_problem: int = 16 * KIB
    """Of an unsealed error page, which is read only to recognise "unknown key"."""
    report_s: float = 60.0
    """Time for a whole report to arrive, however slowly it drips."""
    reverify: ReverifyLimits = field(default_factory=ReverifyLimits)

    def __post_init__(self) -> None:
        if not 1 <= self.request_padding <= MIB:
            raise ValueError("request_padding is between 1 and 1048576 bytes")
