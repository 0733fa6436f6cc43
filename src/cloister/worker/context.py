"""What all handlers of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloister.engine.budget import Budget
from cloister.worker.api_keys import Gatekeeper
from cloister.worker.cache_domain import CacheDomains
from cloister.worker.engine_set import EngineSet
from cloister.worker.fairness import Places
from cloister.worker.idempotency import IdempotencyMemory
from cloister.worker.keys import KeyRing
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.rate import RateLimiter
from cloister.worker.receipts import ReceiptStore
from cloister.worker.settings import Clocks, WorkerSettings


@dataclass(slots=True, kw_only=True, eq=False)
class Context:
    """The parts of one worker; made by `cloister.worker.app.build_worker`."""

    settings: WorkerSettings
    clocks: Clocks
    random: Callable[[int], bytes]
    log: EventLog
    metrics: Metrics
    keys: KeyRing
    engines: EngineSet
    gatekeeper: Gatekeeper = field(repr=False)
    receipts: ReceiptStore = field(repr=False)
    idempotency: IdempotencyMemory = field(repr=False)
    rates: RateLimiter = field(repr=False)
    cache_domains: CacheDomains = field(repr=False)
    places: Places = field(repr=False)
    """Of requests inside the engine, or waiting for it."""
    answers: Budget = field(repr=False)
    """Memory for whole answers."""
    started_at: int = 0
    """Unix time; what /v1/models says as `created`."""
    stopping: bool = False

    @property
    def generations(self) -> int:
        """Requests inside the engine now, or waiting for it."""
        return self.places.taken
