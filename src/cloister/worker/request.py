"""One inner request, from sealed pieces to checked fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.channel.bhttp import (
    TOO_LARGE,
    Data,
    EndOfContent,
    RequestDecoder,
    RequestEvent,
    RequestHead,
)
from cloister.channel.bhttp import Limits as MessageLimits
from cloister.channel.ohttp import ServerKey, ServerRequest
from cloister.errors import ChannelError, MalformedError
from cloister.worker import problems, wire
from cloister.worker.hashing import RequestHash
from cloister.worker.idempotency import MAX_KEY_BYTES
from cloister.worker.problems import RefusedError
from cloister.worker.settings import Limits

_MAX_PATH: Final = 512
"""It goes into the receipt; the longest path of this API has a tenth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFields:
    """What the worker reads from the inner header section."""

    method: str
    path: str
    """Without the query."""
    query: str = field(repr=False)
    """What follows the question mark, undecoded; only paths of `cloister.worker.compat` have it."""
    client_nonce: bytes = field(repr=False)
    cache_secret: bytes | None = field(repr=False)
    idempotency_key: bytes | None = field(repr=False)
    bearer: bytes | None = field(repr=False)
    date: float | None


def read_fields(head: RequestHead) -> RequestFields:
    """Check and decode the inner head's fields; RefusedError names what is wrong."""
    headers = head.headers
    path, _, query = head.path.partition(b"?")
    if len(path) > _MAX_PATH:
        raise RefusedError(problems.UNKNOWN_PATH)
    nonce = _decoded(headers, wire.CLIENT_NONCE, wire.NONCE_SIZE, problems.NO_NONCE)
    if nonce is None:
        raise RefusedError(problems.NO_NONCE)
    idempotency = _single(headers, wire.IDEMPOTENCY_KEY, problems.BAD_IDEMPOTENCY_KEY)
    if idempotency is not None and not 1 <= len(idempotency) <= MAX_KEY_BYTES:
        raise RefusedError(problems.BAD_IDEMPOTENCY_KEY)
    return RequestFields(
        method=head.method.decode("latin-1"),
        path=path.decode("latin-1"),
        query=query.decode("latin-1"),
        client_nonce=nonce,
        cache_secret=_decoded(
            headers, wire.CACHE_SECRET, wire.CACHE_SECRET_SIZE, problems.BAD_CACHE_SECRET
        ),
        idempotency_key=idempotency,
        bearer=_bearer(headers),
        date=_date(headers),
    )


def _single(headers: wire.Headers, name: bytes, problem: problems.Problem) -> bytes | None:
    try:
        return wire.one_field(headers, name)
    except ValueError:
        raise RefusedError(problem) from None


def _decoded(
    headers: wire.Headers, name: bytes, size: int, problem: problems.Problem
) -> bytes | None:
    value = _single(headers, name, problem)
    if value is None:
        return None
    try:
        return wire.decode_secret(value, size)
    except ValueError:
        raise RefusedError(problem) from None


def _bearer(headers: wire.Headers) -> bytes | None:
    """The credential: ``Authorization: Bearer``, or Anthropic's ``x-api-key``."""
    value = _single(headers, b"authorization", problems.NO_API_KEY)
    key = _single(headers, wire.API_KEY, problems.NO_API_KEY)
    if value is None:
        return key
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise RefusedError(problems.NO_API_KEY)
    if key is not None and key != token:
        raise RefusedError(problems.NO_API_KEY)  # two readers would take different ones
    return token


def _date(headers: wire.Headers) -> float | None:
    value = _single(headers, b"date", problems.DATE_REFUSED)
    if value is None:
        return None
    try:
        return wire.parse_http_date(value)
    except ValueError:
        raise RefusedError(problems.DATE_REFUSED) from None


class Arrival:
    """A sealed request on its way in: opened and decoded piece by piece.

    Nothing of it may be acted on before `finish` has returned: until then its sender may
    still be somebody who cut it short. (Refusing it earlier is no action.)
    """

    def __init__(self, keys: Mapping[int, ServerKey], *, chunked: bool, limits: Limits) -> None:
        self.sealed = ServerRequest(keys, chunked=chunked, max_message=limits.max_request_bytes)
        self.chunked = chunked
        self.authenticated = False
        """Whether at least one piece was opened, so that a sealed answer has a reader."""
        self.head: RequestHead | None = None
        self._decoder = RequestDecoder(
            MessageLimits(
                header_bytes=limits.max_header_bytes,
                header_count=limits.max_headers,
                body_bytes=limits.max_request_bytes,
            )
        )
        self._opened: list[bytes] = []
        self._body: list[bytes] = []

    def take_body(self) -> bytes:
        """Hand over the content, whole; nothing of it stays here."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return body

    def take_hash(self) -> RequestHash:
        """SHA-256 of all opened bytes, padding included; they are let go of."""
        opened, self._opened = self._opened, []
        return RequestHash(opened)

    def receive(self, data: bytes) -> None:
        """Take more sealed bytes. RefusedError says what to answer."""
        try:
            pieces = self.sealed.receive(data)
        except ChannelError as error:
            raise RefusedError(self._unopened(error)) from None
        if pieces:
            self._decode(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def finish(self) -> None:
        """The body has ended: require the authenticated end and a whole message."""
        try:
            last = self.sealed.finish()
        except ChannelError as error:
            raise RefusedError(self._unopened(error)) from None
        if last:
            self._decode(last)
        self.authenticated = True
        try:
            self._take(self._decoder.finish())
        except MalformedError as error:
            raise RefusedError(_malformed(error)) from None
        if self.head is None:
            raise RefusedError(problems.BAD_MESSAGE)

    def _decode(self, piece: bytes) -> None:
        self.authenticated = True
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
                    self.head = event
                case EndOfContent():
                    pass  # request trailers carry nothing that this worker reads

    def _unopened(self, error: ChannelError) -> problems.Problem:
        if error.code == "channel.too_large":
            return problems.TOO_LARGE
        # Key ids are one byte and may collide between replicas, so a first piece that does not
        # open is answered like an unknown key: the client verifies again and finds the right one.
        if error.code == "channel.unknown_key" or (
            self.sealed.header_complete and not self.authenticated
        ):
            return problems.UNKNOWN_KEY
        return problems.CANNOT_OPEN


def _malformed(error: MalformedError) -> problems.Problem:
    if error.code == TOO_LARGE:
        return problems.Problem(
            status=413, message="The request is too large.", code="request_too_large", retry=False
        )
    return problems.BAD_MESSAGE
