"""A broker behind its own HTTP server on loopback, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister.broker.serve import Listening, Service, serve
from cloister.worker.broker_http import BrokerHttp
from cloister.worker.logs import EventLog
from support.broker import Bench


@dataclass(kw_only=True)
class Served:
    """A broker that listens on loopback."""

    at: Bench
    url: str
    status: str
    log: io.StringIO

    def http(self) -> BrokerHttp:
        return BrokerHttp(self.url)


@contextlib.contextmanager
def served(at: Bench, **options: Any) -> Iterator[Served]:
    """Serve in a thread; stopped at the end."""
    ready, found, log = threading.Event(), [], io.StringIO()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def listening(where: Listening) -> None:
        found.append(where)
        ready.set()

    async def run() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        service = Service(
            host="127.0.0.1", port=0, status_port=0, roots=at.attester.roots, **options
        )
        await serve(at.store, service, log=EventLog(log), stop=stop, ready=listening)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="broker")
    thread.start()
    assert ready.wait(30)
    try:
        yield Served(
            at=at,
            url=f"http://127.0.0.1:{found[0].port}",
            status=f"http://127.0.0.1:{found[0].status_port}/",
            log=log,
        )
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()
