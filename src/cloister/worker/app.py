"""The worker as ASGI applications: one for requests that come sealed, one inside attested TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.channel.claims import ClaimsDocument
from cloister.engine.budget import Budget
from cloister.engine.protocol import Engine
from cloister.evidence.report import TEE_TYPE_TPM, EvidenceItem
from cloister.strictjson import JsonObject
from cloister.worker import problems, wire
from cloister.worker.api_keys import Gatekeeper
from cloister.worker.cache_domain import CacheDomains
from cloister.worker.compat import dialect_of
from cloister.worker.context import Context
from cloister.worker.engine_set import EngineSet
from cloister.worker.fairness import Places
from cloister.worker.gateway import Gateway
from cloister.worker.idempotency import IdempotencyMemory
from cloister.worker.keys import KeyRing, ReceiptKey
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.pool import EnginePool
from cloister.worker.problems import RefusedError
from cloister.worker.rate import RateLimiter
from cloister.worker.receipts import ReceiptStore
from cloister.worker.reports import EvidenceSource, ReportService
from cloister.worker.response import Receive, Scope, Send
from cloister.worker.sealed import SealedWay
from cloister.worker.settings import Clocks, WorkerSettings
from cloister.worker.tls_arrival import TlsWay
from cloister.worker.unsealed import send_plain, send_problem

if TYPE_CHECKING:
    from cloister.worker.tls_key import TlsKey

_MAX_CREDENTIALS: Final = 100_000
_TICK_S: Final = 1.0
_WELCOME: Final = (
    b"A Cloister worker. It takes sealed requests only.\n"
    b"Python:     cloister.OpenAI(base_url=...)\n"
    b"Anything:   cloister proxy --help\n"
    b"Check it:   cloister verify URL\n"
)


class Worker:
    """One sealed worker. `start` before the first request, `stop` after the last."""

    def __init__(self, context: Context, reports: ReportService) -> None:
        self.context = context
        self._reports = reports
        self._gateway = Gateway(context)
        self._sealed = SealedWay(context)
        self._tls = TlsWay(context)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be answered."""
        return self.context.engines.ready and not self.context.stopping

    @property
    def readiness(self) -> Mapping[str, bool]:
        """The same for each model."""
        stopping = self.context.stopping
        return {one.model.name: one.ready and not stopping for one in self.context.engines}

    @property
    def open_requests(self) -> int:
        """Requests in progress."""
        return self._gateway.open_requests

    async def start(self) -> None:
        """Start the engines and the worker's own housekeeping."""
        await self.context.engines.start()
        self._tasks = [
            asyncio.create_task(self._keep_house()),
            asyncio.create_task(self._gateway.sweep()),
        ]
        self.context.log.event("worker.ready", keyset=self.context.keys.current.digest)

    async def stop(self) -> None:
        """Take no more requests, let answers in flight finish for a while, end the engines."""
        context = self.context
        context.stopping = True
        context.log.event("worker.stopping", open_requests=self.open_requests)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(context.settings.limits.drain_s):
                await self._gateway.wait_idle()
        await self._gateway.give_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await context.engines.aclose()
        context.log.event("worker.stopped")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that came in clear, or through a TLS that ended elsewhere."""
        await self._answer(scope, receive, send, inside_tls=False)

    async def inside_tls(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of the listener of attested TLS; an application of its own.

        The caller owes that nothing comes here but through TLS with the key of the keyset.
        """
        if not self.context.settings.attested_tls:
            raise RuntimeError("attested TLS is not switched on")
        await self._answer(scope, receive, send, inside_tls=True)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, *, inside_tls: bool
    ) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            if not await self._about_keys(scope, receive, send):
                await (self._inside_tls if inside_tls else self._in_clear)(scope, receive, send)
        except RefusedError as refused:
            await send_problem(send, refused.problem)
        except Exception as error:
            self.context.log.failure("request.failed_outside", error)

    async def _about_keys(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer what needs no protection of the connection; whether it was that."""
        method, path = scope["method"], scope["path"]
        if path == wire.OHTTP_PATH:
            _require(method, "POST")
            await self._gateway(self._sealed, scope, receive, send)
        elif path == wire.KEYS_PATH:
            _require(method, "GET", "HEAD")
            headers = ((b"content-type", wire.KEYS_TYPE), (b"cache-control", b"no-store"))
            await send_plain(send, 200, self.context.keys.current.key_configs, headers)
        elif path == wire.ATTESTATION_PATH:
            _require(method, "GET", "HEAD")
            await self._report(scope, send)
        else:
            return False
        return True

    async def _in_clear(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/":
            _require(method, "GET", "HEAD")
            await send_plain(send, 200, _WELCOME, ((b"content-type", b"text/plain"),))
        elif path.startswith("/v1/") or dialect_of(path, self.context.settings.compat):
            raise RefusedError(problems.PLAINTEXT)
        else:
            raise RefusedError(problems.NOT_FOUND_OUTSIDE)

    async def _inside_tls(self, scope: Scope, receive: Receive, send: Send) -> None:
        certificates = self.context.keys.current.certificates
        if scope["path"] == wire.PIN_PATH and certificates is not None:
            _require(scope["method"], "GET", "HEAD")
            headers = ((b"content-type", wire.PIN_TYPE), (b"cache-control", b"no-store"))
            await send_plain(send, 200, certificates.pin, headers)
        else:
            await self._gateway(self._tls, scope, receive, send)

    async def _report(self, scope: Scope, send: Send) -> None:
        body, digest = await self._reports.report(scope)
        headers = (
            (b"content-type", wire.JSON_TYPE),
            (b"cache-control", b"no-store"),
            (wire.ACI_VERSION, b"aci/1"),
            (wire.KEYSET_DIGEST, digest.encode()),
        )
        await send_plain(send, 200, body, headers)

    async def _keep_house(self) -> None:
        context = self.context
        while True:
            if context.keys.refresh():
                context.metrics.key_rotations.inc()
                context.log.event("keys.rotated", keyset=context.keys.current.digest)
            for engine in context.engines:
                context.metrics.engine_ready.labels(engine.model.name).set(engine.ready)
            context.metrics.tasks.set(len(asyncio.all_tasks()))
            context.rates.keep_only(context.gatekeeper.credentials())
            await asyncio.sleep(_TICK_S)


def build_worker(
    *,
    engines: Sequence[Engine],
    source: EvidenceSource,
    tee_type: str = TEE_TYPE_TPM,
    claims: ClaimsDocument,
    log: EventLog,
    settings: WorkerSettings | None = None,
    clocks: Clocks | None = None,
    random: Callable[[int], bytes] = os.urandom,
    api_keys: Path | None = None,
    open_when_empty: bool = False,
    provenance: JsonObject | None = None,
    receipt_key: ReceiptKey | None = None,
    tls_key: TlsKey | None = None,
    boot_evidence: Mapping[str, EvidenceItem] | None = None,
    manifest: bytes | None = None,
) -> Worker:
    """Put a worker together; nothing is started and nothing is read but the API key file.

    `boot_evidence` goes into every report as it is: that of GPUs, which were asked once, at boot,
    for a nonce made from `receipt_key`, and which `claims` name.

    `manifest` is the bundle that goes into every report; `claims` name its digest
    (`cloister.worker.manifest`).

    `open_when_empty` serves anybody while no API key was ever made: for a worker that listens
    on the loopback only. ConfigurationError when the API key file cannot be used.
    """
    if boot_evidence and receipt_key is None:
        raise TypeError("evidence from boot was asked for with the receipt key: give that too")
    settings = settings or WorkerSettings()
    if settings.attested_tls is not (tls_key is not None):
        raise TypeError("a TLS key goes with attested TLS, and with nothing else")
    clocks = clocks or Clocks()
    metrics = Metrics()
    keys = KeyRing(
        subject=claims.subject,
        settings=settings.keys,
        clocks=clocks,
        random=random,
        receipt_key=receipt_key,
        tls_key=tls_key,
    )
    context = Context(
        settings=settings,
        clocks=clocks,
        random=random,
        log=log,
        metrics=metrics,
        keys=keys,
        engines=EngineSet(
            [
                EnginePool(
                    engine,
                    log,
                    separation=settings.separation,
                    limits=settings.limits,
                    steady=clocks.steady,
                    metrics=metrics,
                )
                for engine in engines
            ]
        ),
        gatekeeper=Gatekeeper(
            api_keys, open_when_empty=open_when_empty, steady=clocks.steady, log=log
        ),
        receipts=ReceiptStore(settings.receipts),
        idempotency=IdempotencyMemory(
            capacity=settings.idempotency_capacity, keep_s=2 * settings.keys.lifetime_s
        ),
        rates=RateLimiter(settings.rate, max_names=_MAX_CREDENTIALS),
        cache_domains=CacheDomains(random),
        places=Places(settings.limits.max_generations),
        answers=Budget(settings.limits.max_buffered_bytes),
        started_at=int(clocks.wall()),
    )
    reports = ReportService(
        source=source,
        tee_type=tee_type,
        claims=claims,
        keys=keys,
        settings=settings.reports,
        clocks=clocks,
        log=log,
        metrics=metrics,
        provenance=provenance,
        boot_evidence=boot_evidence or {},
        manifest=manifest,
    )
    return Worker(context, reports)


def _require(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise RefusedError(problems.METHOD_OUTSIDE)


async def _lifespan(receive: Receive, send: Send) -> None:
    """Answer the server's lifespan protocol; `Worker.start` is called before the server's."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
