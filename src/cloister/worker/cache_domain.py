"""Who may share cached prompt prefixes: nobody but one client with itself.

A cache shared between clients answers the question "has somebody sent this prefix?" through
its timing. The domain is derived from a secret of the worker, the credential, and a random
secret that the client sends inside the seal; a client that sends none gets a fresh domain for
every request, which is to say no reuse at all.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cloister.worker.wire import CACHE_SECRET_SIZE

_LABEL = b"cloister.cache-domain.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever asks, as far as the worker can tell people apart. All of it stays in the worker."""

    asker: Hashable
    """Who is to be treated fairly: the credential; on an open worker, the cache domain."""
    domain: str
    """The cache domain."""
    client: str | None
    """The cache domain of a client that sent a secret, and so can be recognised; else None."""


class CacheDomains:
    """Derives domains; the worker's secret lives in memory and dies with it."""

    __slots__ = ("_random", "_secret")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._secret = random(32)

    def caller(self, credential: bytes, client_secret: bytes | None) -> Caller:
        """Tell who asks; `credential` is empty on an open worker."""
        domain = self.domain(credential, client_secret)
        return Caller(
            asker=credential or domain,
            domain=domain,
            client=None if client_secret is None else domain,
        )

    def domain(self, credential: bytes, client_secret: bytes | None) -> str:
        """Return 64 hex characters; `client_secret` is 32 bytes, or ``None`` for a fresh domain."""
        if client_secret is None:
            return self._random(32).hex()
        if len(client_secret) != CACHE_SECRET_SIZE:
            raise ValueError("a cache secret has 32 bytes")
        message = _LABEL + len(credential).to_bytes(4, "big") + credential + client_secret
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
