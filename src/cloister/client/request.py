"""The inner request: what is sealed, and which header fields go with it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate

Field = tuple[bytes, bytes]

CACHE_SECRET = b"x-cloister-cache-secret"
CLIENT_NONCE = b"x-cloister-nonce"
IDEMPOTENCY_KEY = b"idempotency-key"

# Fields of one connection (RFC 9110 section 7.6.1), or that Binary HTTP says otherwise: its control
# data carries the authority, its framing the length.
_CONNECTION_FIELDS = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# A compressed answer's size tells more about it than a padded one's, so none is asked for.
_DROPPED = _CONNECTION_FIELDS | {b"accept-encoding", b"date", CLIENT_NONCE}


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerRequest:
    """One request as its sender meant it; the same on every resend."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    """Path and query."""
    headers: tuple[Field, ...] = field(repr=False)
    """Lower-case names; neither the date nor this message's nonce, which differ per sealing."""
    body: bytes = field(repr=False)

    def fields(self, *, date: float, nonce: bytes) -> tuple[Field, ...]:
        """All header fields of one sealing at Unix time `date`, with 32 fresh random bytes."""
        stamp = formatdate(date, usegmt=True).encode("ascii")
        return (*self.headers, (b"date", stamp), (CLIENT_NONCE, base64url(nonce)))


def inner_headers(fields: Iterable[Field]) -> list[Field]:
    """The fields to seal, of all those an HTTP client wanted to send; names in lower case."""
    return [(name.lower(), value) for name, value in fields if name.lower() not in _DROPPED]


def base64url(data: bytes) -> bytes:
    """Encode without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")
