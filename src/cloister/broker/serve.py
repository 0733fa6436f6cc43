"""The broker's process: from an opened store to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cloister.broker.app import DENIED_PER_SOURCE, PER_SOURCE, BrokerApp
from cloister.broker.clock import steady
from cloister.broker.desk import Desk
from cloister.broker.status import StatusPage
from cloister.broker.stock import Staple
from cloister.broker.store import Store
from cloister.broker.turns import Turns
from cloister.broker.vouching import EvidenceSource, Vouching
from cloister.endorsements.roots import Roots
from cloister.errors import ConfigurationError
from cloister.manifest.signatures import IdentityVerifier
from cloister.verifier.policy import AppraisalPolicy
from cloister.worker.logs import EventLog, silence_loop
from cloister.worker.server import HttpServer, allow_connections, listen_tcp
from cloister.worker.settings import RateLimit

POSTGRES_THREADS: Final = 4
"""Decisions at a time where the database is across a network."""
SQLITE_THREADS: Final = 2
"""Evidence is verified while another decision is flushed to the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How a broker serves."""

    host: str
    port: int
    """0 takes a free one."""
    status_port: int | None = None
    """Of the status page, on the loopback; None serves none."""
    roots: Roots
    """What workers' evidence has to chain to."""
    stock: AppraisalPolicy | None = None
    """Under which stock clients are heard; None hears none."""
    staple: Staple = lambda item: item
    identities: IdentityVerifier | None = None
    """Checks signatures of manifests through Sigstore; None counts none."""
    evidence: EvidenceSource | None = None
    """The broker's own, where it runs in a TEE."""
    tee_type: str = ""
    per_source: RateLimit = PER_SOURCE
    denied_per_source: RateLimit = DENIED_PER_SOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a broker listens now."""

    port: int
    status_port: int | None


def run(store: Store, service: Service, *, ready: Callable[[Listening], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once requests are answered.

    ConfigurationError (``configuration.listen``) if an address cannot be had.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_until_told(store, service, ready))


async def _until_told(store: Store, service: Service, ready: Callable[[Listening], None]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = EventLog(sys.stderr)
    silence_loop(loop, log)
    await serve(store, service, log=log, stop=stop, ready=ready)


async def serve(
    store: Store,
    service: Service,
    *,
    log: EventLog,
    stop: asyncio.Event,
    ready: Callable[[Listening], None],
) -> None:
    """As `run`, on a loop that is there, until `stop`."""
    desk = Desk(
        store,
        roots=service.roots,
        stock=service.stock,
        staple=service.staple,
        identities=service.identities,
    )
    allow_connections(listeners=2)
    on_sqlite = store.database.engine.dialect.name == "sqlite"
    async with contextlib.AsyncExitStack() as stack:
        app = BrokerApp(
            desk,
            log=log,
            steady=steady,
            vouching=_vouching(store, service),
            per_source=service.per_source,
            denied_per_source=service.denied_per_source,
            turns=Turns(threads=SQLITE_THREADS if on_sqlite else POSTGRES_THREADS),
        )
        stack.push_async_callback(app.aclose)
        listener = _listen(service.host, service.port)
        stack.callback(listener.close)
        servers = [HttpServer(app, listener)]
        page = None
        if service.status_port is not None:
            page = _listen("127.0.0.1", service.status_port)
            stack.callback(page.close)
            status = StatusPage(store, app.counts, waiting=lambda: app.turns.waiting)
            servers.append(HttpServer(status, page))
        for server in servers:
            await server.open()
            stack.push_async_callback(server.close)
        ready(
            Listening(
                port=listener.getsockname()[1],
                status_port=None if page is None else page.getsockname()[1],
            )
        )
        await stop.wait()


def _vouching(store: Store, service: Service) -> Vouching | None:
    if service.evidence is None:
        return None
    return Vouching(store.identity, service.evidence, tee_type=service.tee_type, now=store.now)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        ipaddress.ip_address(host)
        return listen_tcp(host, port)
    except (OSError, ValueError):
        raise ConfigurationError(
            f"the broker cannot listen on {host}, port {port}: give an IP address of this"
            " machine and a free port",
            code="configuration.listen",
        ) from None
