"""A loopback OpenAI-compatible endpoint that verifies one worker and seals everything to it.

For programs in any language: they speak plain HTTP to this process on their own machine, and
this process is the verifying client. It forwards what `FORWARDED` names and shows a page.

Web pages must not reach it from the browser beside it: requests with a foreign ``Host`` (DNS
rebinding), ``Origin`` or ``Sec-Fetch-Site`` are refused before anything else is looked at.
Other users of the same machine can use it; it guards the wire, not the machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import httpx2
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cloister.client.page import SECURITY_HEADERS, PageState, render
from cloister.errors import CloisterError, FetchError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from cloister.client.connection import AsyncConnection
    from cloister.verifier.result import AttestationResult

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
FORWARDED = ("/v1/{path:path}", "/v2/models/{path:path}", "/generate", "/health")
"""What is under OpenAI's root; and paths of servers that Cloister replaces, to which a worker
answers 404 unless its operator has switched them on."""
Encode = Callable[["AttestationResult", bytes | None], object]

# Of the browser, or of other programs on this machine's loopback; nothing the worker needs.
_PRIVATE = frozenset({"cookie", "origin", "referer"})
_NOT_PASSED_BACK = frozenset({"content-length", "set-cookie"})


class LocalProxy:
    """The ASGI application; `allowed_hosts` are the values of ``Host`` it answers to."""

    def __init__(
        self, connection: AsyncConnection, *, allowed_hosts: Iterable[str], encode: Encode
    ) -> None:
        self._connection = connection
        self._encode = encode
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/verification.json", self._verification),
                *(Route(path, self._forward, methods=METHODS) for path in FORWARDED),
            ],
        )
        self._app: ASGIApp = OwnOriginOnly(app, frozenset(allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._app(scope, receive, send)

    async def _page(self, _: Request) -> Response:
        link = self._connection.link
        failure = link.attestation.failure
        state = PageState(
            worker=self._connection.url,
            result=self._connection.result,
            attester=link.attestation.current(),
            failure=str(failure) if isinstance(failure, CloisterError) else None,
            exchanges=link.completed_exchanges,
            last=link.last_exchange,
        )
        return HTMLResponse(render(state), headers=SECURITY_HEADERS)

    async def _verification(self, _: Request) -> Response:
        result = self._connection.result
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        if result is None:
            return _error(503, "the worker has not been verified yet", "client.no_result")
        nonce = self._connection.link.attestation.nonce
        return JSONResponse(self._encode(result, nonce), headers=headers)

    async def _forward(self, request: Request) -> Response:
        body = await _read(request, self._connection.link.settings.max_request_body)
        if body is None:
            return _error(413, "the request's body is too large", "channel.too_large")
        outgoing = self._connection.http.build_request(
            request.method, _target(self._connection.url, request), content=body
        )
        outgoing.headers = httpx2.Headers(
            [
                (name, value)
                for name, value in request.headers.raw
                if name.decode("latin-1") not in _PRIVATE and not name.startswith(b"sec-")
            ]
        )
        try:
            sending = self._connection.http.send(outgoing, stream=True)
            answer = await _unless_gone(request, sending)
        except CloisterError as error:
            # Verified and refused stays refused; what did not arrive may be tried again.
            retry = isinstance(error, FetchError | httpx2.TransportError)
            return _error(502, str(error), error.code, retry=retry)
        except httpx2.TransportError as error:
            return _error(502, f"the worker cannot be reached ({type(error).__name__})", "fetch")
        if answer is None:
            return _error(499, "the caller left", "proxy.caller_left")  # nobody reads it
        return StreamingResponse(
            _content(answer), status_code=answer.status_code, headers=self._headers(answer)
        )

    def _headers(self, answer: httpx2.Response) -> dict[str, str]:
        headers = {
            name: value for name, value in answer.headers.items() if name not in _NOT_PASSED_BACK
        }
        result = self._connection.result
        if result is not None:
            headers["x-cloister-platform"] = result.platform.encode("ascii", "replace").decode()
        return headers


class OwnOriginOnly:
    """Refuses requests that a page of another origin made a browser send."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(f"http://{host}" for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 (421 for a name that is not ours)."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        values = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value.lower() for name, value in values if name == b"host"]
        origins = [value.lower() for name, value in values if name == b"origin"]
        sites = [value for name, value in values if name == b"sec-fetch-site"]
        refusal: Response | None = None
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            refusal = _error(421, "this proxy does not answer to that name", "proxy.host")
        elif any(origin not in self._origins for origin in origins) or any(
            site not in {"same-origin", "none"} for site in sites
        ):
            refusal = _error(403, "requests of other web pages are refused", "proxy.origin")
        await (self._app if refusal is None else refusal)(scope, receive, send)


def _target(root: str, request: Request) -> str:
    # The path as it was sent: decoding and encoding it again could name something else.
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode("ascii")
    query: bytes = request.scope["query_string"]
    path = raw.partition(b"?")[0] + (b"?" + query if query else b"")
    return root + path.decode("ascii")


async def _read(request: Request, limit: int) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


async def _unless_gone(
    request: Request, sending: Coroutine[Any, Any, httpx2.Response]
) -> httpx2.Response | None:
    """What `sending` returns; ``None``, and `sending` cancelled, when the caller leaves first.

    Whoever leaves does not want the answer, so the worker must not go on computing it.
    """
    answering = asyncio.ensure_future(sending)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        leaving.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _content(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """The answer's bytes; if it fails on the way, an error event and a broken connection.

    The break is what tells every client that the answer is not whole.
    """
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except (CloisterError, httpx2.TransportError) as error:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            code = error.code if isinstance(error, CloisterError) else "fetch"
            document = json.dumps(_document(str(error), code))
            yield f"data: {document}\n\n".encode()
        raise
    finally:
        await answer.aclose()


def _document(message: str, code: str) -> dict[str, dict[str, str | None]]:
    return {"error": {"message": message, "type": "cloister_error", "param": None, "code": code}}


def _error(status: int, message: str, code: str, *, retry: bool = False) -> Response:
    return JSONResponse(
        _document(message, code),
        status_code=status,
        headers={"x-should-retry": "true" if retry else "false", "cache-control": "no-store"},
    )
