"""The second way in: plain HTTP inside a TLS connection that ends in this process.

The connection stands for the seal: TLS 1.3 keeps it confidential, refuses replays (there is no
early data) and makes a cut show, together with HTTP's own framing. So a request needs neither
nonce nor date. What it does not give is in docs/concepts/threat-model.md.
"""

from __future__ import annotations

from typing import Final

from cloister.channel.bhttp import RequestHead
from cloister.worker import problems, wire
from cloister.worker.arrival import credential_of, over_rate
from cloister.worker.context import Context
from cloister.worker.hashing import RequestHash
from cloister.worker.keys import Generation
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.request import RequestFields, read_fields
from cloister.worker.response import Scope, Send
from cloister.worker.tls_response import TlsResponseWriter

_IN_WORDS: Final = {
    problems.TOO_LARGE: problems.REQUEST_TOO_LARGE,
    problems.TOO_SLOW: problems.REQUEST_TOO_SLOW,
    problems.BUSY: problems.WORKER_BUSY,
    problems.STOPPING: problems.SHUTTING_DOWN,
}
"""What is said of a sealed envelope, in the shape that OpenAI's clients read."""


class TlsWay:
    """Requests on the listener of attested TLS. The caller owes that they came in there."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def refuse(self, scope: Scope) -> Problem | None:
        """Nothing: there is no envelope."""
        return None

    def arrive(self, scope: Scope) -> TlsArrival:
        """A request that begins to arrive."""
        return TlsArrival(self._context, scope)

    def outside(self, problem: Problem) -> Problem:
        """In OpenAI's shape."""
        return _IN_WORDS.get(problem, problem)


class TlsArrival:
    """A request on its way in, its head known from the start."""

    def __init__(self, context: Context, scope: Scope) -> None:
        self.fields: RequestFields | None = None
        self.credential = b""
        self._context = context
        self._head = _head(scope)
        self._generation = context.keys.current
        self._pieces: list[bytes] = []
        self._size = 0
        self._body: bytes | None = None

    @property
    def anthropic(self) -> bool:
        """Whether errors have Anthropic's shape."""
        return wire.is_anthropic(self._head.path)

    @property
    def generation(self) -> Generation:
        """The newest when the request began; each of them lists the TLS key."""
        return self._generation

    def begin(self) -> None:
        """Bound the head, and check who asks, before a byte of the body is taken."""
        limits, headers = self._context.settings.limits, self._head.headers
        size = len(self._head.path) + sum(len(name) + len(value) for name, value in headers)
        if size > limits.max_header_bytes or len(headers) > limits.max_headers:
            raise RefusedError(problems.REQUEST_TOO_LARGE)
        fields = read_fields(self._head, sealed=False)
        self.credential = credential_of(self._context, fields)
        self.fields = fields

    def receive(self, data: bytes) -> None:
        """Take more of the body."""
        self._size += len(data)
        if self._size > self._context.settings.limits.max_request_bytes:
            raise RefusedError(problems.REQUEST_TOO_LARGE)
        if data:
            self._pieces.append(data)

    def finish(self) -> None:
        """The body has ended: HTTP's framing inside TLS says so."""

    def admit(self) -> Problem | None:
        """Admit the whole request, or say why not."""
        return over_rate(self._context, self.credential)

    def take_body(self) -> bytes:
        """Hand over the content, whole; only the pieces to hash stay here."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def take_hash(self) -> RequestHash:
        """SHA-256 of the body as it came, transfer coding undone (`aci/1` section 7.4)."""
        pieces, self._pieces = self._pieces, []
        return RequestHash(pieces)

    def inside(self, problem: Problem) -> bool:
        """Always: the connection is the seal."""
        return True

    def writer(self, send: Send) -> TlsResponseWriter:
        """What writes the answer into the connection."""
        return TlsResponseWriter(send)


def _head(scope: Scope) -> RequestHead:
    # The path as it was sent: decoded, two spellings of it would be one.
    path, query = bytes(scope["raw_path"]), bytes(scope["query_string"])
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
    return RequestHead(
        method=scope["method"].encode("ascii"),
        scheme=b"https",
        authority=b"",
        path=path + b"?" + query if query else path,
        headers=headers,
    )
