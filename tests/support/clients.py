"""The four verifying transports behind one function, so that every test runs on each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import httpx2

from cloister.client.exchange import SealedExchange
from cloister.client.httpx2_transport import AsyncHttpx2Transport, Httpx2Transport
from cloister.client.httpx_transport import AsyncHttpxTransport, HttpxTransport
from support.fake_worker import FakeVerifier
from support.wire import AsyncHttpx2Wire, AsyncHttpxWire, Handler, Httpx2Wire, HttpxWire

WORKER = "http://worker.test"
KINDS = ("httpx2", "httpx2-async", "httpx", "httpx-async")
TRANSPORT_ERRORS = (httpx2.RemoteProtocolError, httpx.RemoteProtocolError)


@dataclass(frozen=True, kw_only=True)
class Got:
    """What a client saw."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    exchange: SealedExchange


class Asker:
    """Posts through one transport, kept over several posts."""

    def __init__(self, kind: str, handler: Handler, **options: Any) -> None:
        self.kind = kind
        self._handler = handler
        self.verifier: FakeVerifier = options.pop("verifier", None) or FakeVerifier()
        worker = options.pop("worker", WORKER)
        transports: dict[str, Any] = {
            "httpx2": (Httpx2Transport, Httpx2Wire),
            "httpx2-async": (AsyncHttpx2Transport, AsyncHttpx2Wire),
            "httpx": (HttpxTransport, HttpxWire),
            "httpx-async": (AsyncHttpxTransport, AsyncHttpxWire),
        }
        transport, wire = transports[kind]
        self.transport = transport(worker, self.verifier, inner=wire(handler), **options)

    def post(self, path: str = "/v1/chat/completions", body: bytes = b"{}", **more: Any) -> Got:
        """Post once and read the whole answer."""
        return self.request("POST", path, content=body, **more)

    def request(self, method: str, path: str, **more: Any) -> Got:
        """Send one request and read the whole answer."""
        url = path if "://" in path else WORKER + path
        if self.kind.endswith("-async"):
            return asyncio.run(self._asynchronously(method, url, more))
        library = httpx2 if self.kind == "httpx2" else httpx
        client = library.Client(transport=self.transport)
        return _got(client.request(method, url, **more))

    async def _asynchronously(self, method: str, url: str, more: dict[str, Any]) -> Got:
        library = httpx2 if self.kind == "httpx2-async" else httpx
        client = library.AsyncClient(transport=self.transport)
        return _got(await client.request(method, url, **more))


def _got(response: Any) -> Got:
    return Got(
        status=response.status_code,
        headers=response.headers,
        body=response.content,
        exchange=response.extensions["cloister"],
    )
