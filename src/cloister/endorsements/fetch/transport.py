"""One HTTP exchange: what a fetcher needs of a network, and nothing that it does by itself.

A transport follows no redirect, repeats nothing and keeps nothing; `cloister.endorsements.fetch.
retrieve` decides about those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What is sent: no cookies, no credentials, no user agent that names the machine."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; a field sent twice is joined with a comma."""
    body: bytes


class Transport(Protocol):
    """Exchanges one request for one answer."""

    def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
        """Send `request` and read an answer of at most `limit` bytes within `total_s` seconds.

        Raises:
            FetchError: no answer (code ``fetch.unreachable``), not in time (``fetch.timeout``),
                or a longer one (``fetch.too_large``).
        """
        ...
