"""The listener of attested TLS: handshakes with bounds, then HTTP as on the other listener.

A connection that has not finished its handshake is none for uvicorn, which neither counts it nor
gives it a time. So connections are accepted here, and are uvicorn's once TLS stands.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from cloister.worker.keys import KeyRing
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.server import BoundedHttpProtocol, HttpServer
from cloister.worker.tls_key import TlsKey, server_context

MAX_HANDSHAKES: Final = 256
"""At a time; for one more the oldest is cut off. They cost a signature each, and hold no request.
Whoever wants to come in needs a moment, and whoever wants to keep others out would have to bring
as many as this in every such moment."""
HANDSHAKE_S: Final = 10.0
"""As for the head of a request."""
GOODBYE_S: Final = 5.0
"""How long a peer may take to answer the end of a connection."""
_BREATH_S: Final = 0.1
"""Before the next attempt, where no connection can be accepted (no file descriptor is free)."""


class TlsServer(HttpServer):
    """Serves an application inside TLS, with the certificate of the newest keyset."""

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        *,
        key: TlsKey,
        keys: KeyRing,
        log: EventLog,
        metrics: Metrics,
    ) -> None:
        super().__init__(app, listener)
        listener.setblocking(False)
        self._tls = server_context()
        self._key = key
        self._keys = keys
        self._log = log
        self._shown = ""
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """In progress, the oldest first."""
        self._accepting: asyncio.Task[None] | None = None
        self._counted = metrics.tls_handshakes
        self._show_newest()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections here, and let uvicorn listen nowhere."""
        for listener in sockets or ():
            self._accepting = asyncio.create_task(self._accept(listener))
        await super().startup([])

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: show the certificate of the newest keyset."""
        try:
            self._show_newest()
        except OSError as error:  # no file descriptor is free; the old one is good for a while
            self._log.failure("tls.certificate_failed", error)
        return await super().on_tick(counter)

    async def close(self) -> None:
        """Accept nothing more, cut off handshakes, close every connection, and return."""
        tasks = [*self._handshakes, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()

    def _show_newest(self) -> None:
        generation = self._keys.current
        if generation.digest == self._shown:
            return
        if generation.certificates is None:
            raise RuntimeError("a worker with a TLS key has certificates for it")
        self._key.load(self._tls, generation.certificates.leaf)
        self._shown = generation.digest

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._log.failure("tls.accept_failed", error)
                await asyncio.sleep(_BREATH_S)
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._counted.labels(outcome="refused").inc()
                oldest = next(iter(self._handshakes))
                self._forget(oldest)
                oldest.cancel()
            task = asyncio.create_task(self._shake_hands(connection))
            self._handshakes[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.pop(handshake, None)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._http,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=GOODBYE_S,
            )
        except OSError:  # no TLS, too old a version, too slow, or gone
            self._counted.labels(outcome="failed").inc()
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            self._counted.labels(outcome="done").inc()

    def _http(self) -> asyncio.Protocol:
        return BoundedHttpProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
