"""Verifying transports for ``httpx``, which other SDKs use; needs the extra ``httpx``.

Never give the client they go into a ``proxy`` or ``mounts`` of its own: requests that match those
would not come here at all. Proxies are an argument of these transports instead.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx

from cloister.client import adapter
from cloister.client.address import WorkerAddress
from cloister.client.link import ExchangeHook, Link
from cloister.errors import ChannelError, FetchError, TruncatedError

if TYPE_CHECKING:
    from cloister.client.attestation import Verifier
    from cloister.client.settings import ClientSettings, Effects

LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
"""As `cloister.client.httpx2_transport` has it."""


class SealedProtocolError(httpx.RemoteProtocolError, ChannelError):
    """The sealed channel failed, as an error that programs written for httpx know."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class SealedTruncatedError(SealedProtocolError, TruncatedError):
    """The sealed answer ended before its authenticated end."""


class ReportFetchError(httpx.RemoteProtocolError, FetchError):
    """The worker's report could not be fetched."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class HttpxTransport(adapter.SyncSealing, httpx.BaseTransport):
    """Seals every request to one verified worker; for ``httpx.Client(transport=…)``.

    `worker` is the worker's address or an SDK's base URL. The worker is verified at the first
    request, and again when its keyset expires. `inner` sends the sealed bytes; without one, a
    transport that honours `proxy` or (with `trust_env`) the environment's proxies, and checks
    TLS certificates with `tls` or the system's roots. A worker at a unix socket, on vsock or
    behind a port is reached there directly.
    """

    def __init__(
        self,
        worker: str,
        verifier: Verifier,
        *,
        settings: ClientSettings | None = None,
        on_exchange: ExchangeHook | None = None,
        inner: httpx.BaseTransport | None = None,
        proxy: str | None = None,
        trust_env: bool = True,
        tls: ssl.SSLContext | None = None,
        effects: Effects | None = None,
    ) -> None:
        address = WorkerAddress.parse(worker)
        link = Link(address, verifier, settings=settings, effects=effects, on_exchange=on_exchange)
        route = None
        if inner is None:
            proxy = adapter.choose_proxy(address, proxy, trust_env=trust_env)
            route = adapter.open_route(address)
            inner = httpx.HTTPTransport(
                verify=adapter.tls_context(address, tls),
                proxy=proxy,
                uds=adapter.socket_of(route),
                limits=LIMITS,
            )
        super().__init__(_API, link, inner, route)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send and open; errors are `SealedProtocolError` and those of verification."""
        response: httpx.Response = self._handle(request)
        return response

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()
        self._close_route()


class AsyncHttpxTransport(adapter.AsyncSealing, httpx.AsyncBaseTransport):
    """As `HttpxTransport`, for ``httpx.AsyncClient(transport=…)``."""

    def __init__(
        self,
        worker: str,
        verifier: Verifier,
        *,
        settings: ClientSettings | None = None,
        on_exchange: ExchangeHook | None = None,
        inner: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
        trust_env: bool = True,
        tls: ssl.SSLContext | None = None,
        effects: Effects | None = None,
    ) -> None:
        address = WorkerAddress.parse(worker)
        link = Link(address, verifier, settings=settings, effects=effects, on_exchange=on_exchange)
        route = None
        if inner is None:
            proxy = adapter.choose_proxy(address, proxy, trust_env=trust_env)
            route = adapter.open_route(address)
            inner = httpx.AsyncHTTPTransport(
                verify=adapter.tls_context(address, tls),
                proxy=proxy,
                uds=adapter.socket_of(route),
                limits=LIMITS,
            )
        super().__init__(_API, link, inner, route)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Seal, send and open; errors are `SealedProtocolError` and those of verification."""
        response: httpx.Response = await self._handle(request)
        return response

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()
        self._close_route()


class _SyncStream(adapter.SealedSyncStream, httpx.SyncByteStream):
    pass


class _AsyncStream(adapter.SealedAsyncStream, httpx.AsyncByteStream):
    pass


_API: adapter.Api = adapter.Api(
    url=httpx.URL,
    request=httpx.Request,
    response=httpx.Response,
    sync_stream=lambda opened, reply, link: _SyncStream(_API, opened, reply, link),
    async_stream=lambda opened, reply, link: _AsyncStream(_API, opened, reply, link),
    lost=(httpx.ReadError, httpx.RemoteProtocolError),
    protocol_error=SealedProtocolError,
    truncated_error=SealedTruncatedError,
    fetch_error=ReportFetchError,
)
