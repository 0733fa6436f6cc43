"""What the worker reads from the head of a request, whichever way it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cloister.channel.bhttp import RequestHead
from cloister.worker import problems, wire
from cloister.worker.idempotency import MAX_KEY_BYTES
from cloister.worker.problems import RefusedError

_MAX_PATH: Final = 512
"""It goes into the receipt; the longest path of this API has a tenth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFields:
    """What the worker reads from the header section."""

    method: str
    path: str
    """Without the query."""
    query: str = field(repr=False)
    """What follows the question mark, undecoded; only paths of `cloister.worker.compat` have it."""
    client_nonce: bytes | None = field(repr=False)
    """Always there in a sealed request: it goes into what the receipt hashes."""
    cache_secret: bytes | None = field(repr=False)
    idempotency_key: bytes | None = field(repr=False)
    bearer: bytes | None = field(repr=False)
    date: float | None


def read_fields(head: RequestHead, *, sealed: bool) -> RequestFields:
    """Check and decode the head's fields; RefusedError names what is wrong.

    A request that is not `sealed` came over TLS, and needs neither nonce nor date.
    """
    headers = head.headers
    path, _, query = head.path.partition(b"?")
    if len(path) > _MAX_PATH:
        raise RefusedError(problems.UNKNOWN_PATH)
    nonce = None
    if sealed:
        nonce = _decoded(headers, wire.CLIENT_NONCE, wire.NONCE_SIZE, problems.NO_NONCE)
        if nonce is None:
            raise RefusedError(problems.NO_NONCE)
    idempotency = _single(headers, wire.IDEMPOTENCY_KEY, problems.BAD_IDEMPOTENCY_KEY)
    if idempotency is not None and not 1 <= len(idempotency) <= MAX_KEY_BYTES:
        raise RefusedError(problems.BAD_IDEMPOTENCY_KEY)
    return RequestFields(
        method=head.method.decode("latin-1"),
        path=path.decode("latin-1"),
        query=query.decode("latin-1"),
        client_nonce=nonce,
        cache_secret=_decoded(
            headers, wire.CACHE_SECRET, wire.CACHE_SECRET_SIZE, problems.BAD_CACHE_SECRET
        ),
        idempotency_key=idempotency,
        bearer=_bearer(headers),
        date=_date(headers) if sealed else None,
    )


def _single(headers: wire.Headers, name: bytes, problem: problems.Problem) -> bytes | None:
    try:
        return wire.one_field(headers, name)
    except ValueError:
        raise RefusedError(problem) from None


def _decoded(
    headers: wire.Headers, name: bytes, size: int, problem: problems.Problem
) -> bytes | None:
    value = _single(headers, name, problem)
    if value is None:
        return None
    try:
        return wire.decode_secret(value, size)
    except ValueError:
        raise RefusedError(problem) from None


def _bearer(headers: wire.Headers) -> bytes | None:
    """The credential: ``Authorization: Bearer``, or Anthropic's ``x-api-key``."""
    value = _single(headers, b"authorization", problems.NO_API_KEY)
    key = _single(headers, wire.API_KEY, problems.NO_API_KEY)
    if value is None:
        return key
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise RefusedError(problems.NO_API_KEY)
    if key is not None and key != token:
        raise RefusedError(problems.NO_API_KEY)  # two readers would take different ones
    return token


def _date(headers: wire.Headers) -> float | None:
    value = _single(headers, b"date", problems.DATE_REFUSED)
    if value is None:
        return None
    try:
        return wire.parse_http_date(value)
    except ValueError:
        raise RefusedError(problems.DATE_REFUSED) from None
