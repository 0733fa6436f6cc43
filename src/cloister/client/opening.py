"""Opens one sealed response as it arrives, and checks its receipt at the end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cloister.channel import bhttp
from cloister.channel.receipt import RECEIPT_TRAILER, parse_receipt_trailer, verify_receipt
from cloister.client.exchange import SealedExchange, served_model
from cloister.client.settings import ClientSettings, Receipts
from cloister.errors import AuthenticationError, ChannelError, MalformedError

if TYPE_CHECKING:
    from cloister.channel.keyset import Keyset
    from cloister.channel.ohttp import ChunkedResponseOpener

EVENT_STREAM = b"text/event-stream"
_DONE = b"[DONE]"
# The end mark on a line of its own. Inside an event's JSON a line break is escaped.
_DONE_LINE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]")
_DONE_SIZE = len(b"\ndata: [DONE]")
# Pieces of content that are hashed in one call: a call costs as much as hashing a token.
_HASHED_TOGETHER = 64


class ResponseOpening:
    """Takes the bytes of one sealed response in any division; gives its head and content.

    Everything it gives is authenticated and in order, but the answer is whole only once `finish`
    has returned. Readers of event streams stop at ``data: [DONE]``, so what completes that line,
    and all after it, is held back until the end, with the receipt, has been checked.
    """

    __slots__ = (
        "_consumed",
        "_decoder",
        "_hash",
        "_hashing",
        "_held",
        "_holds_done",
        "_keyset",
        "_opener",
        "_post",
        "_request_hash",
        "_settings",
        "_tail",
        "_trailers",
        "_unhashed",
        "exchange",
        "head",
    )

    def __init__(
        self,
        *,
        opener: ChunkedResponseOpener,
        exchange: SealedExchange,
        keyset: Keyset,
        request_hash: Callable[[], bytes],
        settings: ClientSettings,
        post: bool,
    ) -> None:
        self.exchange = exchange
        self.head: bhttp.ResponseHead | None = None
        self._opener = opener
        self._keyset = keyset
        self._request_hash = request_hash
        self._settings = settings
        self._post = post
        self._decoder = bhttp.ResponseDecoder(
            bhttp.Limits(
                header_bytes=settings.max_response_head,
                header_count=settings.max_response_headers,
                body_bytes=settings.max_response_body,
            )
        )
        self._hash = hashlib.sha256()
        self._hashing = True
        self._unhashed: list[bytes] = []
        self._consumed = 0
        self._held: list[bytes] = []
        self._holds_done = False
        self._tail = b""  # of an unfinished line given out, enough for an end mark begun there
        self._trailers: tuple[tuple[bytes, bytes], ...] = ()

    def receive(self, data: bytes) -> list[bytes]:
        """Take more of the sealed response; return the content that may be given out now.

        Raises:
            ChannelError: anything does not authenticate, or is not a Binary HTTP response.
        """
        content: list[bytes] = []
        for plaintext in self._opener.receive(data):
            self._decode(plaintext, content)
        return self._hold_done(content) if self._holds_done else content

    def finish(self) -> list[bytes]:
        """The transport's end: check that the answer is whole, and its receipt.

        Returns the rest of the content, if any was held back.

        Raises:
            TruncatedError: the authenticated end is missing.
            ChannelError: it does not authenticate, or the required receipt is missing (code
                ``receipt.missing``).
            AuthenticationError: the receipt does not verify; codes as
                `cloister.channel.receipt.verify_receipt`, and ``receipt.model``.
        """
        content: list[bytes] = []
        last = self._opener.finish()
        if last:
            self._decode(last, content)
        try:
            for event in self._decoder.finish():
                self._take(event)
            self._hash_pieces()
            self._check_receipt()
        except MalformedError as error:
            raise _not_bhttp(error) from error
        self.exchange.complete = True
        held, self._held = self._held, []
        return [*held, *content]

    def _decode(self, plaintext: bytes, content: list[bytes]) -> None:
        # Runs once per token, so the usual case (content that goes on) is spelled out here.
        decoder = self._decoder
        try:
            events = decoder.receive(plaintext)
        except MalformedError as error:
            raise _not_bhttp(error) from error
        if decoder.content_end is None:
            self._unhashed.append(plaintext)
            if len(self._unhashed) == _HASHED_TOGETHER:
                self._hash_pieces()
        elif self._hashing:
            self._end_hash(plaintext, decoder.content_end)
        for event in events:
            if type(event) is bhttp.Data:
                content.append(event.data)
            else:
                self._take(event)

    def _take(self, event: bhttp.ResponseEvent) -> None:
        if isinstance(event, bhttp.ResponseHead):
            self._take_head(event)
        elif isinstance(event, bhttp.EndOfContent):
            self._trailers = event.trailers

    def _take_head(self, head: bhttp.ResponseHead) -> None:
        self.head = head
        kind = next((value for name, value in head.headers if name == b"content-type"), b"")
        self._holds_done = kind.lower().startswith(EVENT_STREAM)

    def _end_hash(self, plaintext: bytes, content_end: int) -> None:
        """Hash up to the end of the content; trailers and padding are not covered."""
        self._hash_pieces()
        self._hash.update(memoryview(plaintext)[: content_end - self._consumed])
        self._hashing = False

    def _hash_pieces(self) -> None:
        pieces = b"".join(self._unhashed)
        self._unhashed.clear()
        self._hash.update(pieces)
        self._consumed += len(pieces)

    def _hold_done(self, content: list[bytes]) -> list[bytes]:
        if self._held:
            self._held += content
            return []
        for index, piece in enumerate(content):
            seen = self._tail + piece if self._tail else piece
            if _DONE in seen and _DONE_LINE.search(seen):
                self._held = content[index:]
                return content[:index]
            self._tail = b"" if piece.endswith(b"\n") else seen[-_DONE_SIZE:]
        return content

    def _check_receipt(self) -> None:
        found = [value for name, value in self._trailers if name == RECEIPT_TRAILER]
        if not found:
            if self._receipt_needed():
                raise ChannelError("the answer came without a receipt", code="receipt.missing")
            return
        if len(found) > 1:
            raise ChannelError("the answer came with several receipts", code="receipt.several")
        receipt = parse_receipt_trailer(found[0])
        verify_receipt(
            receipt,
            keyset=self._keyset,
            request_hash=self._request_hash(),
            response_hash=self._hash.digest(),
        )
        _check_model(served_model(receipt), self.exchange.attester.claims_document)
        self.exchange.receipt = receipt
        self.exchange.receipt_verified = True

    def _receipt_needed(self) -> bool:
        # Only the worker writes inside the seal, so an error without a receipt is no forgery.
        return (
            self._settings.receipts is Receipts.REQUIRED
            and self._post
            and self.head is not None
            and 200 <= self.head.status < 300
        )


def _check_model(served: tuple[str, str | None] | None, claims: Mapping[str, object]) -> None:
    """The model in the receipt must be one that the attested claims document lists."""
    if served is None:
        return
    models = claims.get("models")
    listed = models if isinstance(models, list | tuple) else ()
    for model in listed:
        if isinstance(model, Mapping) and (model.get("name"), model.get("sha256")) == served:
            return
    raise AuthenticationError(
        "the receipt names a model that the attested claims document does not list",
        code="receipt.model",
    )


def _not_bhttp(error: MalformedError) -> ChannelError:
    return ChannelError(
        f"the worker's sealed answer is malformed: {error}", code="channel.malformed"
    )
