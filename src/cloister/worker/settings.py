"""Every bound and time limit of the worker, with the reason for its value.

All times are seconds, all sizes bytes. The clocks are here too: they belong to the host, so
whatever must not be stretched by setting a clock back is measured on `Clocks.steady`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

KIB = 1024
MIB = 1024 * KIB


def _steady() -> float:
    # CLOCK_BOOTTIME goes on counting while the machine sleeps, so that a suspended key still ages.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The wall clock (Unix time) and a clock that never goes back."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _steady


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """Life of the request keys, and the memory that goes with each."""

    life_s: float = 3600.0
    """A key is the newest one for this long (RFC 9458 section 6.5: short-lived keys)."""
    overlap_s: float = 600.0
    """A key opens requests for this long after a newer one replaced it."""
    replay_capacity: int = 500_000
    """Requests remembered per key: 139 a second for an hour, about 60 MB. Full means rotate."""
    min_rotation_s: float = 60.0
    """A flood makes keys rotate at most this often; beyond it new requests get 503."""

    @property
    def lifetime_s(self) -> float:
        """From a key's making to the moment it opens nothing more."""
        return self.life_s + self.overlap_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may use."""

    max_request_bytes: int = 32 * MIB
    """Sealed request body, refused by its declared length already."""
    max_buffered_bytes: int = 512 * MIB
    """Sum over all requests still arriving or waiting for the engine; as much again for answers
    that are held until they are whole."""
    max_header_bytes: int = 32 * KIB
    max_headers: int = 100
    """Of the inner request; SDKs send about twenty."""
    max_open_requests: int = 512
    """Sealed requests being received or answered; beyond it 503 without any cryptography."""
    max_generations: int = 256
    """Requests inside the engine or waiting for it; beyond it a sealed 503. One client may hold
    no more of these places than it leaves free."""
    queue_s: float = 120.0
    """Time a request may wait for the engine; then a sealed 503, and nothing was computed."""
    stall_s: float = 300.0
    """An engine that owes streams and says nothing for this long counts as hanging, and is
    started again. Reading a long prompt is silent too: this is what a slow machine may take.
    One that owes answers which come whole may be silent for `generation_s` longer."""
    probe_s: float = 5.0
    """Time the engine's server may take to say that it is there; three times in vain, and it is
    started again. It answers from threads that compute nothing."""
    first_byte_s: float = 10.0
    """Silence allowed while a request arrives."""
    receive_s: float = 120.0
    """Time allowed for a whole request to arrive (32 MiB at 280 kB/s)."""
    generation_s: float = 900.0
    """Time allowed for one answer."""
    send_s: float = 60.0
    """Time one piece of an answer may wait for a client that does not read."""
    drain_s: float = 30.0
    """A graceful stop waits this long for answers in flight."""
    max_answer_bytes: int = 64 * MIB
    """Of an engine's answer; one that is not streamed is held in memory up to this size."""
    max_line_bytes: int = MIB
    """Longest line of a stream held back until its end has come."""
    date_window_s: float = 300.0
    """Difference between a request's Date and the wall clock (a first sieve only)."""


class SeparationMode(StrEnum):
    """Who may be answered by the same engine process."""

    SHARED = "shared"
    PER_CLIENT = "process-per-client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How people are kept apart in the engine's memory, and for how long anything stays there.

    An engine's memory keeps remains of what it computed until its process ends. A process is
    therefore replaced by a fresh one when any of the bounds is reached; 0 switches a bound off.
    All of this is measured.
    """

    mode: SeparationMode = SeparationMode.SHARED
    max_processes: int = 2
    """Engine processes at a time, those that start or finish answers included. Two let a
    successor start while the old process still answers; 1 is for a model of which only one fits
    into memory: requests then wait while it is exchanged."""
    recycle_requests: int = 1_000
    """Requests that one process is given, at most; 1 gives each request a process of its own."""
    recycle_idle_s: int = 60
    """An unused process that has answered anything ends after this long: soon enough that a
    conversation does not outlive it, and no sooner than people take to write their next line."""
    recycle_age_s: int = 3_600
    """A process is given nothing more this long after its first request, for workers that are
    never idle and too slow to reach the number of requests."""
    warm: int = 0
    """Fresh processes kept ready, within `max_processes`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_processes <= 256 or not 0 <= self.warm < self.max_processes:
            raise ValueError("a number of engine processes is out of range")
        if min(self.recycle_requests, self.recycle_idle_s, self.recycle_age_s) < 0:
            raise ValueError("a bound is negative")

    @staticmethod
    def of_one_process() -> Separation:
        """What is left where the engine's process is not ours to exchange."""
        return Separation(
            max_processes=1, recycle_requests=0, recycle_idle_s=0, recycle_age_s=0, warm=0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Sizes that an observer sees are rounded up to these. 1 switches padding off."""

    stream_bucket: int = 256
    body_bucket: int = 1024

    def __post_init__(self) -> None:
        stream = self.stream_bucket == 1 or 128 <= self.stream_bucket <= 8192
        if not (stream and 1 <= self.body_bucket <= 65536):
            raise ValueError("a padding bucket is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptSettings:
    """How long, and how many, receipts can be looked up."""

    keep_s: float = 600.0
    capacity: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A token bucket: `per_minute` on average, `burst` at once. 0 per minute means no limit."""

    per_minute: float = 600.0
    burst: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Quotes cost time, so unauthenticated requests for them are kept apart and few."""

    max_waiting: int = 32
    per_source: RateLimit = field(default=RateLimit(per_minute=600, burst=60))
    max_sources: int = 4096
    unchallenged_s: float = 60.0
    """A report without a nonce proves no freshness, so one serves everybody for this long."""
    timeout_s: float = 20.0


class Dialect(StrEnum):
    """A server that Cloister replaces, whose paths a worker can serve as well."""

    COSMIAN = "cosmian"
    TRITON = "triton"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Which broker a worker takes keys from, and what that has to show. Measured."""

    identity: str
    """``ed25519:<64 hex>``."""
    evidence: str | None
    """``sha256:<hex>`` of what the broker's evidence has to satisfy; None: it need show none."""
    development: bool
    """Whether that was named. Without it, evidence is required, and not of a development
    platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """All settings of one worker."""

    keys: KeySettings = field(default_factory=KeySettings)
    limits: Limits = field(default_factory=Limits)
    padding: Padding = field(default_factory=Padding)
    separation: Separation = field(default_factory=Separation)
    receipts: ReceiptSettings = field(default_factory=ReceiptSettings)
    reports: ReportSettings = field(default_factory=ReportSettings)
    rate: RateLimit = field(default_factory=RateLimit)
    """Per API key; an open worker (loopback, no keys) has none."""
    idempotency_capacity: int = 500_000
    compat: frozenset[Dialect] = frozenset()
    """Paths served beside OpenAI's. Measured: it decides what is answered."""
    manifest_sha256: str | None = None
    """Digest of the manifest that the worker runs under, lower-case hex. Measured."""
    attested_tls: bool = False
    """Whether there is a second listener, where TLS that ends in the worker stands for the seal.
    Measured: it decides where requests are taken that are not sealed."""
    broker: BrokerSettings | None = None
    """Where keys of sealed weights come from, if from anywhere."""
