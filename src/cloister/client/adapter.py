"""What the transports for ``httpx2`` and ``httpx`` share: everything but the base classes.

The two libraries have the same interface and unrelated types, so they meet here as `Api`, a
record of the few classes that are needed, and as ``Any``.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from cloister.client import drive
from cloister.client.address import WorkerAddress
from cloister.client.drive import AsyncDriver, Extensions, OuterRequest, SyncDriver
from cloister.client.flow import Opened
from cloister.client.link import Link
from cloister.client.proxies import proxy_for
from cloister.client.request import InnerRequest
from cloister.errors import (
    ChannelError,
    CloisterError,
    ConfigurationError,
    FetchError,
    MalformedError,
    TruncatedError,
)

if TYPE_CHECKING:
    from cloister.streams.route import Route

EXTENSION = "cloister"
"""``response.extensions["cloister"]`` is the exchange's `SealedExchange`."""

# Timeouts and the TLS name belong to the outer request; nothing else does.
_FORWARDED = ("timeout", "sni_hostname")
# Fields of one connection say nothing about a message that came sealed.
_CONNECTION_FIELDS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


class _CodedError(Protocol):
    def __call__(self, message: str, *, code: str) -> Exception: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One HTTP library: its records, its errors, and ours made to look like them."""

    url: Callable[[str], Any]
    request: Callable[..., Any]
    response: Callable[..., Any]
    sync_stream: Callable[[Opened, drive.SyncReply, Link], Any]
    async_stream: Callable[[Opened, drive.AsyncReply, Link], Any]
    lost: tuple[type[Exception], ...]
    """What the library raises when a connection breaks in the middle of something."""
    protocol_error: _CodedError
    truncated_error: _CodedError
    fetch_error: _CodedError

    @property
    def caught(self) -> tuple[type[Exception], ...]:
        """Everything that `convert` takes."""
        return (CloisterError, *self.lost)

    def convert(self, error: Exception) -> Exception:
        """`error`, or one that is also the library's own where programs expect that."""
        match error:
            case TruncatedError():
                return self.truncated_error(str(error), code=error.code)
            case ChannelError() | MalformedError():
                return self.protocol_error(str(error), code=error.code)
            case FetchError():
                return self.fetch_error(str(error), code=error.code)
            case CloisterError():
                return error
            case _:
                return self.truncated_error(
                    "the connection was lost before the end of what the worker was sending",
                    code=TruncatedError.default_code,
                )


class SyncReply:
    """`cloister.client.drive.SyncReply` over a response of either library."""

    __slots__ = ("_response", "chunks", "content_type", "status")

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status_code
        self.content_type: str = response.headers.get("content-type", "")
        self.chunks: Iterator[bytes] = iter(response.stream)

    def close(self) -> None:
        """Give the connection back."""
        self._response.stream.close()


class AsyncReply:
    """As `SyncReply`, asynchronous."""

    __slots__ = ("_response", "chunks", "content_type", "status")

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status_code
        self.content_type: str = response.headers.get("content-type", "")
        self.chunks: AsyncIterator[bytes] = aiter(response.stream)

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._response.stream.aclose()


class SyncWire:
    """`cloister.client.drive.SyncWire` over a transport of either library."""

    def __init__(self, api: Api, inner: Any) -> None:
        self._outer = _Outer(api)
        self._inner = inner

    def send(self, request: OuterRequest) -> SyncReply:
        """Send and return once status and header fields are there."""
        content = _whole(request.pieces) or request.pieces
        return SyncReply(self._inner.handle_request(self._outer.request(request, content)))


class AsyncWire:
    """As `SyncWire`, asynchronous."""

    def __init__(self, api: Api, inner: Any) -> None:
        self._outer = _Outer(api)
        self._inner = inner

    async def send(self, request: OuterRequest) -> AsyncReply:
        """Send and return once status and header fields are there."""
        content: object = _whole(request.pieces)
        if content is None and request.pieces is not None:
            content = _asynchronously(request.pieces)
        outer = self._outer.request(request, content)
        return AsyncReply(await self._inner.handle_async_request(outer))


class SealedSyncStream:
    """The content of one sealed answer; errors say that the rest is not to be had.

    A second iteration goes on where the first one stopped: the OpenAI SDK reads on after the last
    event, to drain the connection.
    """

    def __init__(self, api: Api, opened: Opened, reply: drive.SyncReply, link: Link) -> None:
        self._api = api
        self._opened = opened
        self._reply = reply
        self._link = link
        self._content = self._open()

    def __iter__(self) -> Iterator[bytes]:
        return self._content

    def _open(self) -> Iterator[bytes]:
        opened, opening = self._opened, self._opened.opening
        try:
            if not opened.ended:
                yield from opened.early
                receive = opening.receive
                for data in self._reply.chunks:
                    yield from receive(data)
            rest = opened.early if opened.ended else opening.finish()
        except self._api.caught as error:
            raise self._api.convert(error) from error
        finally:
            self._reply.close()
        # Before the rest is given out: a reader who has seen "[DONE]" does not come back.
        self._link.completed(opening.exchange)
        yield from rest

    def close(self) -> None:
        """Stop reading; what was not read is lost, and its receipt with it."""
        self._reply.close()


class SealedAsyncStream:
    """As `SealedSyncStream`, asynchronous."""

    def __init__(self, api: Api, opened: Opened, reply: drive.AsyncReply, link: Link) -> None:
        self._api = api
        self._opened = opened
        self._reply = reply
        self._link = link
        self._content = self._open()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._content

    async def _open(self) -> AsyncIterator[bytes]:
        opened, opening = self._opened, self._opened.opening
        try:
            if not opened.ended:
                for piece in opened.early:
                    yield piece
                receive = opening.receive
                async for data in self._reply.chunks:
                    for piece in receive(data):
                        yield piece
            rest = opened.early if opened.ended else opening.finish()
        except self._api.caught as error:
            raise self._api.convert(error) from error
        finally:
            await self.aclose()
        self._link.completed(opening.exchange)
        for piece in rest:
            yield piece

    async def aclose(self) -> None:
        """Stop reading; what was not read is lost, and its receipt with it."""
        with anyio.CancelScope(shield=True):
            await self._reply.aclose()


class SyncSealing:
    """The blocking half of a verifying transport; a subclass adds the library's base class."""

    def __init__(self, api: Api, link: Link, inner: Any, route: Route | None = None) -> None:
        self.link = link
        self._api = api
        self._inner = inner
        self._route = route
        self._driver = SyncDriver(link, SyncWire(api, inner))

    def attest(self) -> None:
        """Verify the worker now, unless a verdict is cached. Raises as the first request would."""
        with _converted(self._api):
            self._driver.attest()

    def _close_route(self) -> None:
        if self._route is not None:
            self._route.close()

    def _handle(self, request: Any) -> Any:
        with _converted(self._api):
            inner = _inner_request(self.link, request, request.read())
            opened, reply = self._driver.exchange(inner, _extensions(request))
        return _response(self._api, opened, self._api.sync_stream(opened, reply, self.link))


class AsyncSealing:
    """As `SyncSealing`, asynchronous."""

    def __init__(self, api: Api, link: Link, inner: Any, route: Route | None = None) -> None:
        self.link = link
        self._api = api
        self._inner = inner
        self._route = route
        self._driver = AsyncDriver(link, AsyncWire(api, inner))

    async def attest(self) -> None:
        """Verify the worker now, unless a verdict is cached. Raises as the first request would."""
        with _converted(self._api):
            await self._driver.attest()

    def _close_route(self) -> None:
        if self._route is not None:
            self._route.close()

    async def _handle(self, request: Any) -> Any:
        with _converted(self._api):
            inner = _inner_request(self.link, request, await request.aread())
            opened, reply = await self._driver.exchange(inner, _extensions(request))
        return _response(self._api, opened, self._api.async_stream(opened, reply, self.link))


class _converted:  # noqa: N801 - used as a statement; a class because it is on every request's way
    __slots__ = ("_api",)

    def __init__(self, api: Api) -> None:
        self._api = api

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._api.caught):
            converted = self._api.convert(error)
            if converted is not error:
                raise converted from error


def tls_context(address: WorkerAddress, given: ssl.SSLContext | None) -> ssl.SSLContext | bool:
    """What checks the outer connection's certificates: never nothing.

    Without TLS a context that trusts nobody is enough, and loading the system's roots, some
    twenty milliseconds, is saved.
    """
    if given is not None:
        return given
    return True if address.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def open_route(address: WorkerAddress) -> Route | None:
    """The way to a worker that is not reached over TCP: a socket for the HTTP library to dial."""
    if address.carrier is None:
        return None
    from cloister.streams.route import Route

    return Route(address.carrier)


def socket_of(route: Route | None) -> str | None:
    """What the HTTP library dials instead of the URL's host."""
    return None if route is None else route.socket_path


def choose_proxy(address: WorkerAddress, given: str | None, *, trust_env: bool) -> str | None:
    """The forward proxy to use: the one given, or else the environment's.

    Raises ConfigurationError where one is given and the worker is not reached over TCP.
    """
    if address.carrier is not None:
        if given is not None:
            raise ConfigurationError(
                "a forward proxy cannot reach a unix socket, vsock or a port", code="client.url"
            )
        return None
    if given is not None or not trust_env:
        return given
    return proxy_for(address)


class _Outer:
    """Makes outer requests; they go to one URL but for reports, so it is parsed once."""

    __slots__ = ("_api", "_text", "_url")

    def __init__(self, api: Api) -> None:
        self._api = api
        self._text = ""
        self._url: Any = None

    def request(self, request: OuterRequest, content: Any) -> Any:
        text, url = self._text, self._url
        if request.url != text:
            url = self._api.url(request.url)
            if request.method == "POST":
                self._url = url
                self._text = request.url
        return self._api.request(
            request.method,
            url,
            headers=list(request.headers),
            content=content,
            extensions=dict(request.extensions),
        )


def _whole(pieces: Iterable[bytes] | None) -> bytes | None:
    """What is one piece anyway, which HTTP libraries send in one write with its header."""
    if isinstance(pieces, tuple) and len(pieces) == 1:
        piece: bytes = pieces[0]
        return piece
    return None


async def _asynchronously(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _inner_request(link: Link, request: Any, body: bytes) -> InnerRequest:
    url = request.url
    return link.inner_request(
        method=request.method,
        scheme=url.scheme,
        authority=url.netloc,
        target=url.raw_path,
        headers=request.headers.raw,
        body=body,
    )


def _extensions(request: Any) -> Extensions:
    given = request.extensions
    return {name: given[name] for name in _FORWARDED if name in given}


def _response(api: Api, opened: Opened, stream: Any) -> Any:
    headers = [field for field in opened.head.headers if field[0] not in _CONNECTION_FIELDS]
    return api.response(
        opened.head.status,
        headers=headers,
        stream=stream,
        extensions={"http_version": b"HTTP/1.1", EXTENSION: opened.opening.exchange},
    )
