"""Fetches packages over HTTP or HTTPS. What arrives is compared with a digest by the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import httpx2

from cloister.errors import FetchError

BLOCK: Final = 1 << 20
MAX_REDIRECTS: Final = 5
TIMEOUT: Final = httpx2.Timeout(60.0, connect=15.0)
"""Between two pieces, in seconds."""


class HttpFetcher:
    """A `cloister.image.downloads.Fetcher`; `transport` replaces the network in tests."""

    def __init__(self, transport: httpx2.BaseTransport | None = None) -> None:
        self._transport = transport

    @contextlib.contextmanager
    def fetch(self, url: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
        """Open `url` and yield its body; FetchError (``image.mirror``) if it cannot be had."""
        with httpx2.Client(
            transport=self._transport,
            timeout=TIMEOUT,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
        ) as client:
            try:
                with client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer:
                    if answer.status_code != 200:
                        raise FetchError(
                            f"{answer.url.host}: HTTP {answer.status_code}", code="image.mirror"
                        )
                    yield _bounded(answer.iter_raw(BLOCK), max_bytes, answer.url.host)
            except (httpx2.TransportError, httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
                raise FetchError(
                    f"{httpx2.URL(url).host}: {type(error).__name__}", code="image.mirror"
                ) from None


def _bounded(pieces: Iterator[bytes], limit: int, host: str) -> Iterator[bytes]:
    arrived = 0
    for piece in pieces:
        arrived += len(piece)
        if arrived > limit:
            raise FetchError(f"{host}: longer than the lock says", code="image.mirror")
        yield piece
