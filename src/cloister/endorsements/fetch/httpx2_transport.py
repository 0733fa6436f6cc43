"""The transport over ``httpx2``.

The exchange runs on an event loop of its own, because only there can one deadline cover
everything: looking up the name, connecting, and a server that sends a byte now and then. So
`exchange` must not be called on a thread that already runs an event loop; use
``anyio.to_thread.run_sync`` there.
"""

from __future__ import annotations

import ssl
from typing import Final

import anyio
import httpx2

from cloister.endorsements.fetch.transport import HttpAnswer, HttpRequest
from cloister.errors import FetchError

CONNECT_S: Final = 10.0
READ_S: Final = 15.0
"""Between two pieces of an answer."""


class Httpx2Transport:
    """A `cloister.endorsements.fetch.transport.Transport`.

    Proxies are used when given here, and never because the environment names one. TLS trusts
    what the system trusts, or `tls`.
    """

    def __init__(
        self,
        *,
        proxy: str | None = None,
        tls: ssl.SSLContext | None = None,
        connect_s: float = CONNECT_S,
        read_s: float = READ_S,
    ) -> None:
        self._proxy = proxy
        self._tls = tls
        self._timeout = httpx2.Timeout(read_s, connect=connect_s)

    def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
        """As the protocol says."""
        return anyio.run(self._exchange, request, limit, total_s)

    async def _exchange(self, request: HttpRequest, limit: int, total_s: float) -> HttpAnswer:
        host = httpx2.URL(request.url).host
        try:
            with anyio.fail_after(total_s):
                return await self._answer(request, limit)
        except (TimeoutError, httpx2.TimeoutException):
            raise FetchError(f"{host} did not answer in time", code="fetch.timeout") from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise FetchError(
                f"{host} cannot be reached ({type(error).__name__})", code="fetch.unreachable"
            ) from None

    async def _answer(self, request: HttpRequest, limit: int) -> HttpAnswer:
        async with (
            httpx2.AsyncClient(
                timeout=self._timeout,
                trust_env=False,
                proxy=self._proxy,
                verify=ssl.create_default_context() if self._tls is None else self._tls,
            ) as client,
            client.stream(
                request.method,
                request.url,
                headers={**request.headers, "accept-encoding": "identity"},
                content=request.body,
                follow_redirects=False,
            ) as response,
        ):
            return HttpAnswer(
                status=response.status_code,
                headers={name.lower(): value for name, value in response.headers.items()},
                body=await _bounded(response, limit),
            )


async def _bounded(response: httpx2.Response, limit: int) -> bytes:
    """Read at most `limit` bytes; what the length field says is not relied on."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > limit:
            raise FetchError(
                f"{response.url.host} sends more than {limit} bytes", code="fetch.too_large"
            )
    return bytes(body)
