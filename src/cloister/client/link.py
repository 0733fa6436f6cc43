"""Everything that requests to one worker share, blocking or not: address, verdict, session."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cloister.client import flow
from cloister.client.address import WorkerAddress
from cloister.client.attestation import Attestation, Verifier
from cloister.client.exchange import SealedExchange
from cloister.client.request import (
    CACHE_SECRET,
    IDEMPOTENCY_KEY,
    Field,
    InnerRequest,
    base64url,
    inner_headers,
)
from cloister.client.retries import RETRY_COUNT, RetryKeys
from cloister.client.settings import ClientSettings, Effects

CACHE_SECRET_SIZE = 32
IDEMPOTENCY_KEY_SIZE = 16

ExchangeHook = Callable[[SealedExchange], None]


class Link:
    """One client's relation to one worker.

    Its random cache secret separates it, at the worker, from every other client: what the worker
    reuses between requests it reuses only where this secret is the same.
    """

    def __init__(
        self,
        address: WorkerAddress,
        verifier: Verifier,
        *,
        settings: ClientSettings | None = None,
        effects: Effects | None = None,
        on_exchange: ExchangeHook | None = None,
    ) -> None:
        self.address = address
        self.settings = settings if settings is not None else ClientSettings()
        self.effects = effects if effects is not None else Effects()
        self.attestation = Attestation(
            address=address, verifier=verifier, settings=self.settings, effects=self.effects
        )
        self.sessions = flow.Sessions(settings=self.settings, effects=self.effects)
        self.completed_exchanges = 0
        self.last_exchange: SealedExchange | None = None
        """The exchange that was completed last, by whichever thread or task."""
        self._cache_secret = base64url(self.effects.random(CACHE_SECRET_SIZE))
        self._on_exchange = on_exchange
        self._retries = RetryKeys(self._new_key)

    def inner_request(
        self,
        *,
        method: str,
        scheme: str,
        authority: bytes,
        target: bytes,
        headers: Iterable[Field],
        body: bytes,
    ) -> InnerRequest:
        """What is sealed for one request of an HTTP client; `target` is path and query.

        A cache secret or an idempotency key among `headers` stays; otherwise they are added.

        Raises:
            ChannelError: the request is for another address (code ``channel.other_worker``).
        """
        path = self.address.inner_path(scheme, authority, target)
        fields = inner_headers(headers)
        given = dict(fields)
        if CACHE_SECRET not in given:
            fields.append((CACHE_SECRET, self._cache_secret))
        if IDEMPOTENCY_KEY not in given:
            count = given.get(RETRY_COUNT)
            key = (
                self._new_key()
                if count is None
                else self._retries.key(
                    count, method.encode(), path, given.get(b"authorization", b""), body
                )
            )
            fields.append((IDEMPOTENCY_KEY, key))
        return InnerRequest(
            method=method.encode("ascii"),
            scheme=scheme.encode("ascii"),
            authority=authority,
            path=path,
            headers=tuple(fields),
            body=body,
        )

    def _new_key(self) -> bytes:
        return self.effects.random(IDEMPOTENCY_KEY_SIZE).hex().encode("ascii")

    def exchange(self, inner: InnerRequest) -> flow.Steps:
        """The generator that sends `inner`; see `cloister.client.flow.exchange`."""
        return flow.exchange(self.sessions, inner, url=self.address.ohttp_url)

    def completed(self, exchange: SealedExchange) -> None:
        """The authenticated end of an answer was seen: remember it and tell whoever asked."""
        self.completed_exchanges += 1
        self.last_exchange = exchange
        if self._on_exchange is not None:
            self._on_exchange(exchange)
