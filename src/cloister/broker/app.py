"""The broker on the wire: KBS RCAR over HTTP, as an ASGI application.

====== =========================================== ==============================================
POST   ``/kbs/v0/auth``                            a challenge, and the session's cookie
POST   ``/kbs/v0/attest``                          a token for evidence
GET    ``/kbs/v0/resource/<repo>/<type>/<tag>``    the sealed secret for the token
GET    ``/cloister/v0/broker?nonce=<64 hex>``      the broker's identity and its evidence
====== =========================================== ==============================================

Paths are compared as they were sent: nothing is decoded, so nothing can decode to something else.
Whoever asks is bounded: size and time of a request, requests per network and minute, and all
together the bytes that arrive and the requests that wait, where whoever has most makes room for
others. A challenge needs no memory (`cloister.broker.session`), so there is no number of them to
bound. Refusals by these bounds are counted and not written to the audit log, which a flood
would fill; every decision of the broker itself is.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TypeVar

from cloister.broker.arriving import MAX_ARRIVING, Arriving
from cloister.broker.denial import UNAUTHENTICATED, Denied
from cloister.broker.desk import Desk
from cloister.broker.turns import BusyError, Turns
from cloister.broker.vouching import Vouching
from cloister.channel import rcar
from cloister.channel.resource_uri import PATH_PREFIX, ResourceUri
from cloister.errors import CloisterError, FetchError, MalformedError
from cloister.worker.logs import EventLog
from cloister.worker.rate import RateLimiter
from cloister.worker.reports import source_of
from cloister.worker.settings import RateLimit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[MutableMapping[str, Any]], Any]
T = TypeVar("T")

RECEIVE_S: Final = 120.0
"""Time allowed for a whole request to arrive, with what the broker itself is late in reading it: a
thousand at once take half a minute on one slow core. What arrives meanwhile is bounded below."""
PER_SOURCE: Final = RateLimit(per_minute=12_000, burst=6_000)
"""A thousand workers behind one address ask three or four times each, all at once."""
DENIED_PER_SOURCE: Final = RateLimit(per_minute=60, burst=300)
"""Denials are written down one by one, so a network that is denied more often than this has to
wait before the next decision: otherwise anybody could fill the audit log."""
MAX_SOURCES: Final = 4096
_HEX: Final = frozenset("0123456789abcdef")
_LIMITS: Final = {
    rcar.AUTH_PATH: rcar.MAX_REQUEST_BYTES,
    rcar.ATTEST_PATH: rcar.MAX_ATTESTATION_BYTES,
}


class _RefusedError(Exception):
    """Answered without a decision: `status`, a word, a sentence."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail


class BrokerApp:
    """The ASGI application. `aclose` at the end."""

    def __init__(
        self,
        desk: Desk,
        *,
        log: EventLog,
        steady: Callable[[], float],
        vouching: Vouching | None = None,
        per_source: RateLimit = PER_SOURCE,
        denied_per_source: RateLimit = DENIED_PER_SOURCE,
        turns: Turns | None = None,
        max_arriving: int = MAX_ARRIVING,
    ) -> None:
        self._desk = desk
        self._vouching = vouching
        self._log = log
        self._steady = steady
        self._rates = RateLimiter(per_source, max_names=MAX_SOURCES)
        self._denials = RateLimiter(denied_per_source, max_names=MAX_SOURCES)
        self._waits: OrderedDict[str, float] = OrderedDict()
        self._arriving = Arriving(max_arriving)
        self.turns = turns or Turns()
        # A quote takes tens of milliseconds; decisions do not wait for it.
        self._quotes = Turns(max_waiting=64)
        self.counts: Counter[str] = Counter()
        """Answers by step and code, for the status page."""

    async def aclose(self) -> None:
        """Let what runs finish."""
        await self.turns.aclose()
        await self._quotes.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except _RefusedError as refused:
            self.counts[f"refused {refused.kind}"] += 1
            status, headers = refused.status, []
            body = rcar.encode_error(refused.kind, refused.detail)
        except Denied as denied:
            self._note_denial(source_of(scope))
            self.counts[f"denied {denied.code}"] += 1
            status = 401 if denied.reason in UNAUTHENTICATED else 403
            headers, body = [], rcar.encode_error("Denied", f"{denied} [{denied.code}]")
        except (BusyError, FetchError) as error:
            self.counts["refused busy"] += 1
            self._log.failure("broker.busy", error)
            status, headers = 503, [(b"retry-after", b"1")]
            body = rcar.encode_error("Busy", "the broker is busy; ask again")
        except CloisterError as error:
            self.counts[f"failed {error.code}"] += 1
            self._log.event("broker.failed", code=error.code)
            status, headers = 500, []
            body = rcar.encode_error("Failed", "the broker cannot answer; its operator's log says")
        except Exception as error:
            self.counts["failed"] += 1
            self._log.failure("broker.failed", error)
            status, headers = 500, []
            body = rcar.encode_error("Failed", "the broker cannot answer; its operator's log says")
        await _respond(send, status, headers, body)

    async def _answer(
        self, scope: Scope, receive: Receive
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        source = source_of(scope)
        wait = self._rates.take(source, self._steady())
        if wait:
            raise _too_many(wait)
        self._check_denials(source)
        method, path = scope["method"], _path(scope)
        desk = self._desk
        if method == "POST" and path == rcar.AUTH_PATH:
            body = await self._received(source, scope, receive, limit=_LIMITS[path])
            self._check_denials(source)
            # At once: it takes less than to wait for a turn and a thread. A denial has its turn.
            begun = desk.undenied_challenge(body)
            if begun is None:
                begun = await self._decided(
                    source, lambda: desk.challenge(body, source=source), size=len(body)
                )
            challenge, cookie = begun
            self.counts["challenged"] += 1
            return 200, [(b"set-cookie", _set_cookie(cookie))], challenge
        if method == "POST" and path == rcar.ATTEST_PATH:
            cookie_sent = _cookie(scope)
            body = await self._received(source, scope, receive, limit=_LIMITS[path])
            answer = await self._decided(
                source, lambda: desk.attest(cookie_sent, body, source=source), size=len(body)
            )
            self.counts["attested"] += 1
            return 200, [], answer
        if method == "GET" and path.startswith(PATH_PREFIX):
            cookie_sent, token = _cookie(scope), _bearer(scope)
            if cookie_sent is None and token is None:
                _check_name(path)
            sealed, _ = await self._decided(
                source, lambda: desk.release(cookie_sent, token, path, source=source), size=0
            )
            self.counts["released"] += 1
            return 200, [], sealed
        if method == "GET" and path.partition("?")[0] == rcar.IDENTITY_PATH:
            return 200, [], await self._identity(source, path)
        raise _RefusedError(404, "NotFound", "there is nothing here")

    async def _decided(self, source: str, decide: Callable[[], T], *, size: int) -> T:
        """What is decided when it is the source's turn, if it was not denied too often by then."""

        def run() -> T:
            self._check_denials(source)
            return decide()

        return await self.turns.take(source, run, size=size)

    async def _received(self, source: str, scope: Scope, receive: Receive, *, limit: int) -> bytes:
        _check_declared(scope, limit)
        try:
            async with self._arriving.request(source, seconds=RECEIVE_S) as hold:
                return await _received(receive, limit=limit, hold=hold)
        except TimeoutError:
            raise _RefusedError(408, "Timeout", "the request took too long to arrive") from None

    def _check_denials(self, source: str) -> None:
        wait = self._waiting_time(source)
        if wait:
            raise _too_many(wait)

    def _note_denial(self, source: str) -> None:
        now = self._steady()
        wait = self._denials.take(source, now)
        if wait:
            self._waits[source] = now + wait
            if len(self._waits) > MAX_SOURCES:
                self._waits.popitem(last=False)

    def _waiting_time(self, source: str) -> int:
        """Whole seconds that a network has to wait because it was denied too often."""
        left = self._waits.get(source, 0.0) - self._steady()
        if left <= 0:
            self._waits.pop(source, None)
            return 0
        return max(1, int(left))

    async def _identity(self, source: str, path: str) -> bytes:
        query = path.partition("?")[2]
        digits = query.removeprefix("nonce=")
        if not query.startswith("nonce=") or len(digits) != 64 or not set(digits) <= _HEX:
            raise _RefusedError(400, "BadRequest", "a nonce is 64 lower-case hex characters")
        vouching, report = self._vouching, None
        if vouching is not None:
            nonce = bytes.fromhex(digits)
            report = await self._quotes.take(source, lambda: vouching.report(nonce), size=0)
        encoded = None if report is None else base64.b64encode(report).decode("ascii")
        document = {"identity": str(self._desk.store.identity), "report": encoded}
        return json.dumps(document, separators=(",", ":")).encode()


def _path(scope: Scope) -> str:
    """Path and query as they were sent."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    query: bytes = scope.get("query_string", b"")
    return (raw + (b"?" + query if query else b"")).decode("latin-1")


def _check_name(path: str) -> None:
    """Send who shows nothing yet to the beginning, if they name a secret at all.

    Stock clients begin with such a request, every one of them. Nobody is denied anything by it: it
    is neither written down nor held against their network.
    """
    with contextlib.suppress(MalformedError):
        ResourceUri.from_path(path)
        raise _RefusedError(401, "Unauthorized", "prove yourself first: there is no session")


def _header(scope: Scope, name: bytes) -> str | None:
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise _RefusedError(400, "BadRequest", f"the field {name.decode()} is repeated")
    return found[0].decode("latin-1") if found else None


def _cookie(scope: Scope) -> str | None:
    line = _header(scope, b"cookie")
    if line is None:
        return None
    given = (pair.strip().partition("=") for pair in line.split(";"))
    return {name: value for name, _, value in given}.get(rcar.COOKIE)


def _set_cookie(cookie: str) -> bytes:
    return f"{rcar.COOKIE}={cookie}; Path=/kbs/v0; HttpOnly; SameSite=Strict".encode("ascii")


def _bearer(scope: Scope) -> str | None:
    line = _header(scope, b"authorization")
    if line is None:
        return None
    kind, _, token = line.partition(" ")
    if kind.lower() != "bearer" or not 1 <= len(token) <= 8192:
        raise _RefusedError(400, "BadRequest", "authorization is a bearer token")
    return token


def _too_many(wait: int) -> _RefusedError:
    return _RefusedError(429, "TooMany", f"too many requests; wait {wait} seconds")


def _too_large(limit: int) -> _RefusedError:
    return _RefusedError(413, "TooLarge", f"a request here has at most {limit} bytes")


def _check_declared(scope: Scope, limit: int) -> None:
    declared = _header(scope, b"content-length")
    if declared is not None and (not declared.isdigit() or int(declared) > limit):
        raise _too_large(limit)


async def _received(receive: Receive, *, limit: int, hold: Callable[[int], None]) -> bytes:
    """The whole body; `hold` is told of every piece before it is kept."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _RefusedError(400, "BadRequest", "the request was cut off")
        piece = message.get("body", b"")
        if len(body) + len(piece) > limit:
            raise _too_large(limit)
        hold(len(piece))
        body += piece
        if not message.get("more_body", False):
            return bytes(body)


async def _respond(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
