"""The server's end of Oblivious HTTP: open a request, seal its response."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloister.channel.hpke import open_failed, setup_receiver
from cloister.channel.ohttp_chunks import MAX_CHUNK, ChunkOpener, ChunkSealer
from cloister.channel.ohttp_schedule import (
    HEADER_SIZE,
    nonce_size,
    request_header,
    request_info,
    response_messages,
)
from cloister.errors import ChannelError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloister.channel.hpke import AeadSequence, ReceiverContext, Suite
    from cloister.channel.hpke_kem import Random
    from cloister.channel.ohttp_chunks import Buffer
    from cloister.channel.ohttp_keys import ServerKey

# How many sealed bytes of one request a server takes by default.
MAX_MESSAGE = 1 << 25


class ServerRequest:
    """Opens one request, given in any division into byte strings, and seals its response.

    `keys` maps key ids to the keys accepted now. `max_message` bounds the sealed bytes.
    Nothing may be acted on before `finish` has returned; replay is the caller's to refuse, by
    remembering `enc`.
    """

    __slots__ = (
        "_buffer",
        "_chunked",
        "_chunks",
        "_context",
        "_enc",
        "_failed",
        "_finished",
        "_keys",
        "_left",
        "key_id",
    )

    def __init__(
        self,
        keys: Mapping[int, ServerKey],
        *,
        chunked: bool = True,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self._keys = keys
        self._chunked = chunked
        self._left = max_message
        self._buffer = bytearray()
        self._chunks: ChunkOpener | None = None
        self._context: ReceiverContext | None = None
        self._enc = b""
        self._failed: str | None = None
        self._finished = False
        self.key_id: int | None = None

    @property
    def header_complete(self) -> bool:
        """Whether the header has arrived and names a key, so that `enc` is known."""
        return self._context is not None

    @property
    def finished(self) -> bool:
        """Whether the whole request has been opened."""
        return self._finished

    @property
    def enc(self) -> bytes:
        """The encapsulated key: equal for every replay. RuntimeError before it has arrived."""
        self._opened()
        return self._enc

    @property
    def suite(self) -> Suite:
        """The suite the client chose. RuntimeError before the header has arrived."""
        return self._opened().suite

    def receive(self, data: Buffer) -> list[bytes]:
        """Take more of the request; return the plaintext of every chunk now complete.

        Raises ChannelError with code "channel.unknown_key" when the header names a key or
        suite that is not offered now, "channel.too_large" past `max_message`, and otherwise
        the ChannelError of every failed open; RuntimeError after `finish`.
        """
        if self._failed is not None:
            raise _server_error(self._failed)
        if self._finished:
            raise RuntimeError("the sealed message has already ended")
        try:
            self._left -= len(data)
            if self._left < 0:
                raise _server_error("channel.too_large")
            return self._receive(data)
        except ChannelError as error:
            self._fail(error.code)
            raise

    def finish(self) -> bytes:
        """The transport's end: return the last plaintext (all of it, when not chunked).

        Raises TruncatedError when the end is missing; the ChannelError of every failed open.
        """
        if self._failed is not None:
            raise _server_error(self._failed)
        if self._finished:
            raise RuntimeError("the sealed message has already ended")
        try:
            if self._context is None:
                raise TruncatedError("the sealed message ended before its final chunk")
            if self._chunks is not None:
                plaintext = self._chunks.finish()
            else:
                plaintext = self._context.messages.open(None, self._buffer)
        except ChannelError as error:
            self._fail(error.code)
            raise
        self._finished = True
        self._buffer = bytearray()
        return plaintext

    def respond(self, data: Buffer, *, random: Random = os.urandom) -> bytes:
        """Seal the whole response (RFC 9458 section 4.4)."""
        messages, nonce = self._response(False, random)
        return nonce + messages.seal(None, data)

    def respond_chunked(
        self, *, chunk_size: int = MAX_CHUNK, random: Random = os.urandom
    ) -> ChunkSealer:
        """Return what seals the response in chunks; its `start` is the response nonce."""
        messages, nonce = self._response(True, random)
        return ChunkSealer(messages, nonce, chunk_size)

    def _response(self, chunked: bool, random: Random) -> tuple[AeadSequence, bytes]:
        context = self._opened()
        if chunked != self._chunked:
            raise RuntimeError("a response takes the form of its request: chunked or not")
        nonce = random(nonce_size(context.suite))
        return response_messages(context, self._enc, nonce, chunked), nonce

    def _receive(self, data: Buffer) -> list[bytes]:
        if self._chunks is not None:
            return self._chunks.receive(data)
        if self._context is None:
            data = self._take_header(memoryview(data))
            if self._context is None:
                return []
        if not self._chunked:
            self._buffer += data
            return []
        self._chunks = ChunkOpener(self._context.messages)
        return self._chunks.receive(data)

    def _take_header(self, data: memoryview) -> memoryview:
        """Set up the context once the header is complete; return what follows it in `data`."""
        buffer = self._buffer
        at = min(max(0, HEADER_SIZE - len(buffer)), len(data))
        buffer += data[:at]
        if len(buffer) < HEADER_SIZE:
            return data[at:]
        header = bytes(buffer[:HEADER_SIZE])
        key = self._keys.get(header[0])
        # An algorithm that the key is not offered with is a key the client should not have.
        suites = () if key is None else key.config.suites
        suite = next((one for one in suites if request_header(header[0], one) == header), None)
        if key is None or suite is None:
            raise _server_error("channel.unknown_key")
        end = at + HEADER_SIZE + suite.kem.enc_size - len(buffer)
        buffer += data[at:end]
        if len(buffer) == HEADER_SIZE + suite.kem.enc_size:
            self._enc = bytes(buffer[HEADER_SIZE:])
            info = request_info(header, self._chunked)
            self._context = setup_receiver(suite, self._enc, key.private_key, info)
            self.key_id = header[0]
            self._buffer = bytearray()
        return data[end:]

    def _opened(self) -> ReceiverContext:
        if self._context is None:
            raise RuntimeError("the request's header has not arrived")
        return self._context

    def _fail(self, code: str) -> None:
        self._failed = code
        self._buffer = bytearray()
        self._chunks = None


def _server_error(code: str) -> ChannelError:
    if code == "channel.unknown_key":
        return ChannelError("the request is sealed to a key that is not in use", code=code)
    if code == "channel.too_large":
        return ChannelError("the sealed message is too large", code=code)
    return open_failed()
