"""The sealed way in: Oblivious HTTP to a key of the attested keyset."""

from __future__ import annotations

from cloister.channel.bhttp import (
    TOO_LARGE,
    Data,
    EndOfContent,
    RequestDecoder,
    RequestEvent,
    RequestHead,
)
from cloister.channel.bhttp import Limits as MessageLimits
from cloister.channel.ohttp import ServerRequest
from cloister.errors import ChannelError, MalformedError
from cloister.worker import problems, wire
from cloister.worker.arrival import credential_of, over_rate
from cloister.worker.context import Context
from cloister.worker.hashing import RequestHash
from cloister.worker.keys import Generation
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.replay import Admission
from cloister.worker.request import RequestFields, read_fields
from cloister.worker.response import ResponseWriter, Scope, Send

_ABOUT_THE_SEAL = frozenset(
    (
        problems.UNKNOWN_KEY,
        problems.CANNOT_OPEN,
        problems.TOO_LARGE,
        problems.TOO_SLOW,
        problems.BUSY,
    )
)
"""Said in clear even where a seal exists: there is no whole request to answer."""


class SealedWay:
    """Requests to ``POST /ohttp``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def refuse(self, scope: Scope) -> Problem | None:
        """A request that does not say that it is sealed."""
        sealed = _content_type(scope) in (wire.REQUEST_TYPE, wire.CHUNKED_REQUEST_TYPE)
        return None if sealed else problems.NOT_SEALED

    def arrive(self, scope: Scope) -> SealedArrival:
        """A sealed request that begins to arrive."""
        chunked = _content_type(scope) == wire.CHUNKED_REQUEST_TYPE
        return SealedArrival(self._context, chunked=chunked)

    def outside(self, problem: Problem) -> Problem:
        """As it is, but for a key that is gone because too many requests were sealed to it."""
        if problem is problems.UNKNOWN_KEY and self._context.keys.seconds_to_rotation():
            return problems.KEYS_EXHAUSTED
        return problem


class SealedArrival:
    """A sealed request on its way in: opened and decoded piece by piece."""

    def __init__(self, context: Context, *, chunked: bool) -> None:
        limits = context.settings.limits
        self.fields: RequestFields | None = None
        self.credential = b""
        self._context = context
        self._chunked = chunked
        self._generation: Generation | None = None
        self._sealed = ServerRequest(
            context.keys.opening_keys(), chunked=chunked, max_message=limits.max_request_bytes
        )
        self._authenticated = False
        """Whether at least one piece was opened, so that a sealed answer has a reader."""
        self._head: RequestHead | None = None
        self._decoder = RequestDecoder(
            MessageLimits(
                header_bytes=limits.max_header_bytes,
                header_count=limits.max_headers,
                body_bytes=limits.max_request_bytes,
            )
        )
        self._opened: list[bytes] = []
        self._body: list[bytes] = []

    @property
    def anthropic(self) -> bool:
        """Whether errors have Anthropic's shape."""
        return self._head is not None and wire.is_anthropic(self._head.path)

    @property
    def generation(self) -> Generation:
        """That of the key which opened the request; the newest where none did."""
        if self._generation is not None:
            return self._generation
        key = self._context.keys.request_key(self._sealed.key_id or 0)
        return self._context.keys.current if key is None else key.generation

    def take_body(self) -> bytes:
        """Hand over the content, whole; nothing of it stays here."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return body

    def take_hash(self) -> RequestHash:
        """SHA-256 of all opened bytes, padding included; they are let go of."""
        opened, self._opened = self._opened, []
        return RequestHash(opened)

    def begin(self) -> None:
        """Nothing is known before a piece has been opened."""

    def receive(self, data: bytes) -> None:
        """Take more sealed bytes. RefusedError says what to answer."""
        try:
            pieces = self._sealed.receive(data)
        except ChannelError as error:
            raise RefusedError(self._unopened(error)) from None
        if pieces:
            self._decode(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._admit_head()

    def finish(self) -> None:
        """The body has ended: require the authenticated end and a whole message."""
        try:
            last = self._sealed.finish()
        except ChannelError as error:
            raise RefusedError(self._unopened(error)) from None
        if last:
            self._decode(last)
        self._authenticated = True
        try:
            self._take(self._decoder.finish())
        except MalformedError as error:
            raise RefusedError(_malformed(error)) from None
        if self._head is None:
            raise RefusedError(problems.BAD_MESSAGE)
        self._admit_head()

    def admit(self) -> Problem | None:
        """Admit the whole request, at most once ever. No await: two copies cannot both pass."""
        keys = self._context.keys
        key = keys.request_key(self._sealed.key_id or 0)
        if key is None or key.generation is not self._generation:
            return problems.UNKNOWN_KEY  # the key died, or was full, while the request arrived
        match keys.admit(key, self._sealed.enc):
            case Admission.SEEN:
                return problems.REPLAYED
            case Admission.FULL:
                return problems.UNKNOWN_KEY
            case Admission.NEW:
                pass
        return over_rate(self._context, self.credential)

    def inside(self, problem: Problem) -> bool:
        """Sealed if there is a seal, and it is not about it."""
        return self._authenticated and problem not in _ABOUT_THE_SEAL

    def writer(self, send: Send) -> ResponseWriter:
        """What seals the answer to whoever sealed the request."""
        return ResponseWriter(self._sealed, chunked=self._chunked, send=send)

    def _admit_head(self) -> None:
        """Check who asks, and when, as soon as the head is there: before a body is kept."""
        head, context = self._head, self._context
        if self.fields is not None or head is None:
            return
        key = context.keys.request_key(self._sealed.key_id or 0)
        if key is None:
            raise RefusedError(problems.UNKNOWN_KEY)
        self._generation = key.generation
        if key.replay.seen(self._sealed.enc):
            raise RefusedError(problems.REPLAYED)
        fields = read_fields(head, sealed=True)
        window = context.settings.limits.date_window_s
        if fields.date is None or abs(fields.date - context.clocks.wall()) > window:
            raise RefusedError(problems.DATE_REFUSED)
        self.credential = credential_of(context, fields)
        self.fields = fields

    def _decode(self, piece: bytes) -> None:
        self._authenticated = True
        self._opened.append(piece)
        try:
            self._take(self._decoder.receive(piece))
        except MalformedError as error:
            raise RefusedError(_malformed(error)) from None

    def _take(self, events: list[RequestEvent]) -> None:
        for event in events:
            match event:
                case Data():
                    self._body.append(event.data)
                case RequestHead():
                    self._head = event
                case EndOfContent():
                    pass  # request trailers carry nothing that this worker reads

    def _unopened(self, error: ChannelError) -> Problem:
        if error.code == "channel.too_large":
            return problems.TOO_LARGE
        # Key ids are one byte and may collide between replicas, so a first piece that does not
        # open is answered like an unknown key: the client verifies again and finds the right one.
        if error.code == "channel.unknown_key" or (
            self._sealed.header_complete and not self._authenticated
        ):
            return problems.UNKNOWN_KEY
        return problems.CANNOT_OPEN


def _malformed(error: MalformedError) -> Problem:
    return problems.REQUEST_TOO_LARGE if error.code == TOO_LARGE else problems.BAD_MESSAGE


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value).partition(b";")[0].strip().lower()
    return b""
