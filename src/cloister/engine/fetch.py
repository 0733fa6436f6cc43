"""Fetches model files over HTTPS.

What arrives is trusted for nothing: `cloister.engine.models` compares its digest with the one
the operator gave before anything reads it. So redirects, which hubs use, are followed, as long
as they stay on HTTPS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import httpx2

from cloister.errors import FetchError

MAX_REDIRECTS: Final = 5
BLOCK: Final = 1 << 20
TIMEOUT: Final = httpx2.Timeout(60.0, connect=15.0)
"""Between two pieces, in seconds; a whole model may take hours."""


class HttpsFetcher:
    """A `cloister.engine.models.Fetcher`; `transport` replaces the network in tests."""

    def __init__(self, transport: httpx2.BaseTransport | None = None) -> None:
        self._transport = transport

    @contextlib.contextmanager
    def fetch(self, url: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
        """Open `url` and yield its body in blocks.

        Raises:
            FetchError: it cannot be fetched, is longer than `max_bytes`, or leads away from
                HTTPS (codes ``fetch.unreachable``, ``fetch.status``, ``fetch.model_size``,
                ``fetch.redirect``).
        """
        with httpx2.Client(transport=self._transport, timeout=TIMEOUT) as client:
            try:
                with self._open(client, url) as response:
                    if int(response.headers.get("content-length", 0)) > max_bytes:
                        raise FetchError("the model is too long", code="fetch.model_size")
                    yield response.iter_raw(BLOCK)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                raise FetchError(
                    f"the model cannot be fetched ({type(error).__name__})",
                    code="fetch.unreachable",
                ) from None

    @contextlib.contextmanager
    def _open(self, client: httpx2.Client, url: str) -> Iterator[httpx2.Response]:
        target = httpx2.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            if target.scheme != "https":
                raise FetchError(
                    "the model's address leads to one that is not https", code="fetch.redirect"
                )
            # The bytes must be the file's own: a compressed transfer would not hash to it.
            headers = {"accept-encoding": "identity"}
            with client.stream("GET", target, headers=headers) as response:
                if response.has_redirect_location:
                    target = target.join(response.headers["location"])
                    continue
                if response.status_code != 200:
                    raise FetchError(
                        f"the model cannot be fetched (HTTP {response.status_code})",
                        code="fetch.status",
                    )
                yield response
                return
        raise FetchError("the model's address leads on and on", code="fetch.redirect")
