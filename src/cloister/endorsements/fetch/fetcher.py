"""What fetches artefacts, and how one of several is chosen for a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cloister.endorsements.artefact import Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.contents import make_artefact
from cloister.errors import ConfigurationError, FetchError, MalformedError


class Fetcher(Protocol):
    """Asks a service for an artefact."""

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """Fetch what `request` names; `at` is now.

        Nothing is authenticated, except that an OCSP response is (see `Nvidia`).

        Raises:
            FetchError: it cannot be had, or what came is not it. ``code`` is one of
                ``fetch.unreachable``, ``fetch.timeout``, ``fetch.status``, ``fetch.throttled``,
                ``fetch.too_large``, ``fetch.redirect``, ``fetch.content``.
            ConfigurationError: no service is known for it, or the address must not be asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetcherByKind:
    """A `Fetcher` that hands each request to the one for its kind."""

    fetchers: Mapping[ArtefactKind, Fetcher] = field(default_factory=dict)

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As the protocol says."""
        fetcher = self.fetchers.get(request.kind)
        if fetcher is None:
            raise ConfigurationError(
                f"no service is configured for {request.kind}", code="fetch.address"
            )
        return fetcher.fetch(request, at=at)


def accept(
    request: ArtefactRequest,
    data: bytes,
    *,
    source: str,
    at: datetime,
    issuer_chain: bytes = b"",
) -> Artefact:
    """Make an artefact of what a service sent.

    Raises:
        FetchError: it is something else (``fetch.content``).
    """
    try:
        return make_artefact(request, data, source=source, fetched_at=at, issuer_chain=issuer_chain)
    except MalformedError as error:
        raise FetchError(f"{error} (from {source})", code="fetch.content") from None
