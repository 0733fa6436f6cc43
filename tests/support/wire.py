"""HTTP reduced to a function, so that workers, proxies and attackers can be put in a row.

A `Handler` takes a `WireRequest` and returns a `WireReply`. The adapters at the end make one the
inner transport of any client, and make one of a real transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx
import httpx2


@dataclass(kw_only=True)
class WireRequest:
    """A request as somebody between client and worker sees it."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes
    extensions: dict[str, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return httpx2.URL(self.url).path

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass(kw_only=True)
class WireReply:
    """A reply; `chunks` is what arrives, in the pieces it arrives in."""

    status: int
    headers: list[tuple[str, str]]
    chunks: Iterator[bytes]
    close: Callable[[], None] = lambda: None


Handler = Callable[[WireRequest], WireReply]


def reply(status: int, content_type: str, body: bytes) -> WireReply:
    return WireReply(
        status=status, headers=[("content-type", content_type)], chunks=iter([body] if body else [])
    )


def over_http(transport: httpx2.BaseTransport | None = None) -> Handler:
    """A handler that sends on, to a real server by default."""
    inner = transport if transport is not None else httpx2.HTTPTransport()

    def send(request: WireRequest) -> WireReply:
        response = inner.handle_request(
            httpx2.Request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.body,
                extensions=request.extensions,
            )
        )
        stream = response.stream
        assert isinstance(stream, httpx2.SyncByteStream)
        return WireReply(
            status=response.status_code,
            headers=list(response.headers.multi_items()),
            chunks=iter(stream),
            close=stream.close,
        )

    return send


class Httpx2Wire(httpx2.BaseTransport):
    """A handler as the inner transport of a blocking httpx2 client."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._handler(
            WireRequest(
                method=request.method,
                url=str(request.url),
                headers=list(request.headers.multi_items()),
                body=request.read(),
                extensions=dict(request.extensions),
            )
        )
        return httpx2.Response(answer.status, headers=answer.headers, stream=_Httpx2Stream(answer))


class AsyncHttpx2Wire(httpx2.AsyncBaseTransport):
    """A handler as the inner transport of an asynchronous httpx2 client."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._handler(
            WireRequest(
                method=request.method,
                url=str(request.url),
                headers=list(request.headers.multi_items()),
                body=await request.aread(),
                extensions=dict(request.extensions),
            )
        )
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_AsyncHttpx2Stream(answer)
        )


class HttpxWire(httpx.BaseTransport):
    """A handler as the inner transport of a blocking httpx client."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._handler(
            WireRequest(
                method=request.method,
                url=str(request.url),
                headers=list(request.headers.multi_items()),
                body=request.read(),
                extensions=dict(request.extensions),
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_HttpxStream(answer))


class AsyncHttpxWire(httpx.AsyncBaseTransport):
    """A handler as the inner transport of an asynchronous httpx client."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._handler(
            WireRequest(
                method=request.method,
                url=str(request.url),
                headers=list(request.headers.multi_items()),
                body=await request.aread(),
                extensions=dict(request.extensions),
            )
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_AsyncHttpxStream(answer)
        )


class _Stream:
    def __init__(self, answer: WireReply) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.chunks

    def close(self) -> None:
        self._answer.close()


class _AsyncStream:
    def __init__(self, answer: WireReply) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._answer.chunks:
            yield chunk

    async def aclose(self) -> None:
        self._answer.close()


class _Httpx2Stream(_Stream, httpx2.SyncByteStream):
    pass


class _HttpxStream(_Stream, httpx.SyncByteStream):
    pass


class _AsyncHttpx2Stream(_AsyncStream, httpx2.AsyncByteStream):
    pass


class _AsyncHttpxStream(_AsyncStream, httpx.AsyncByteStream):
    pass
