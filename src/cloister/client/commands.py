"""What the generators of the client ask their drivers to do.

The handshake and the exchange are generators that perform no I/O: they yield one of these, and
a driver (`cloister.client.drive`), blocking or asynchronous, sends the outcome back in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from cloister.verifier.result import AffirmedAttester


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """GET `url`, without following redirects; answered with the whole body of a 200.

    At most `limit` bytes and `seconds`. The driver raises FetchError for anything else.
    """

    url: str
    limit: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Wait `seconds`; answered with ``None``."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """Verify the worker, or wait until somebody else has; answered with an AffirmedAttester.

    A cached one will do, except `stale`.
    """

    stale: AffirmedAttester | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """POST `pieces` (`length` bytes in all) to `url`; answered with a `Reply`, left open.

    The pieces can be taken once.
    """

    url: str
    content_type: str
    accept: str
    pieces: Iterable[bytes]
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Status and media type of the reply that is open now. Neither is authenticated."""

    status: int
    content_type: str
    """Lower case, without parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The next bytes of the open reply; answered with ``None`` at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Close the open reply; answered with ``None``."""


Command: TypeAlias = Fetch | Pause | Attest | Post | Read | Discard
Outcome: TypeAlias = bytes | AffirmedAttester | Reply | None
