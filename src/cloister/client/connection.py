"""A verified connection: an HTTP client of its own, the verdict, and what was exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx2

from cloister.client.exchange import SealedExchange
from cloister.client.httpx2_transport import AsyncHttpx2Transport, Httpx2Transport
from cloister.client.link import Link
from cloister.errors import CloisterError, FetchError

if TYPE_CHECKING:
    from cloister.channel.receipt import Receipt
    from cloister.verifier.result import AttestationResult

TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
"""A model may think for minutes before its first token; connecting may not take that long."""


class _Shared:
    """What a connection tells, blocking or not."""

    def __init__(self, link: Link) -> None:
        self.link = link

    @property
    def url(self) -> str:
        """The worker's address."""
        return self.link.address.root

    @property
    def result(self) -> AttestationResult | None:
        """The last result of verification, affirming or not; ``None`` before the first."""
        return self.link.attestation.result

    @property
    def last_exchange(self) -> SealedExchange | None:
        """The exchange that was completed last, by whichever thread or task."""
        return self.link.last_exchange

    @property
    def last_receipt(self) -> Receipt | None:
        """The receipt of that exchange, if it came with one; it has been verified."""
        return None if self.last_exchange is None else self.last_exchange.receipt


class Connection(_Shared):
    """One worker, verified, and ``http``, an ``httpx2.Client`` that speaks to it alone."""

    def __init__(self, transport: Httpx2Transport, http: httpx2.Client) -> None:
        super().__init__(transport.link)
        self.http = http
        self._transport = transport

    def verify(self) -> AttestationResult:
        """Verify now, unless an affirming verdict is cached, and return the result.

        Whatever the finding is, the result says it; call its ``require_affirming`` to stop there.

        Raises:
            FetchError: no report could be had.
        """
        link = self.link
        try:
            self._transport.attest()
        except FetchError:
            raise
        except httpx2.TransportError as error:
            raise unreachable(error) from error
        except CloisterError:
            if link.attestation.result is None:
                raise
        result = link.attestation.result
        if result is None:
            raise RuntimeError("a verification ended without a result")
        return result

    def close(self) -> None:
        """Close the client and its connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncConnection(_Shared):
    """As `Connection`, with an ``httpx2.AsyncClient``."""

    def __init__(self, transport: AsyncHttpx2Transport, http: httpx2.AsyncClient) -> None:
        super().__init__(transport.link)
        self.http = http
        self._transport = transport

    async def verify(self) -> AttestationResult:
        """As `Connection.verify`."""
        link = self.link
        try:
            await self._transport.attest()
        except FetchError:
            raise
        except httpx2.TransportError as error:
            raise unreachable(error) from error
        except CloisterError:
            if link.attestation.result is None:
                raise
        result = link.attestation.result
        if result is None:
            raise RuntimeError("a verification ended without a result")
        return result

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def unreachable(error: httpx2.TransportError) -> FetchError:
    """What a broken or refused connection means for whoever only wanted a report."""
    kind = type(error).__name__
    return FetchError(f"the worker cannot be reached ({kind})", code="fetch.unreachable")
