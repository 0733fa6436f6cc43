"""Oblivious HTTP (RFC 9458) and its chunked form (draft-ietf-ohai-chunked-ohttp-08).

Bytes in, bytes out; the plaintext is Binary HTTP, but nothing here looks into it.

=================  ==========================  ==============================
Side               one message (RFC 9458)      chunks (the draft)
=================  ==========================  ==============================
client             ClientRequest               ChunkedSender
client, response   ClientRequest.open_response ChunkedSender.response_opener
server             ServerRequest(chunked=False) ServerRequest(chunked=True)
server, response   ServerRequest.respond       ServerRequest.respond_chunked
=================  ==========================  ==============================

Every open that fails raises one ChannelError, the same for every cause.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloister.channel.hpke import (
    NONCE_SIZE,
    AeadSequence,
    ReceiverContext,
    SenderContext,
    Suite,
    hkdf_expand,
    hkdf_extract,
    open_failed,
    setup_receiver,
    setup_sender,
)
from cloister.channel.ohttp_chunks import MAX_CHUNK, ChunkOpener, ChunkSealer
from cloister.channel.ohttp_keys import (
    KEYS_MEDIA_TYPE,
    SUITES_BY_PREFERENCE,
    KeyConfig,
    ServerKey,
    encode_key_configs,
    parse_key_configs,
    preferred_config,
    preferred_suite,
)
from cloister.errors import ChannelError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloister.channel.hpke_kem import Random
    from cloister.channel.ohttp_chunks import Buffer

__all__ = [
    "CHUNKED_REQUEST_MEDIA_TYPE",
    "CHUNKED_RESPONSE_MEDIA_TYPE",
    "KEYS_MEDIA_TYPE",
    "KEY_PROBLEM_TYPE",
    "MAX_CHUNK",
    "MAX_MESSAGE",
    "REQUEST_MEDIA_TYPE",
    "RESPONSE_MEDIA_TYPE",
    "SUITES_BY_PREFERENCE",
    "ChunkOpener",
    "ChunkSealer",
    "ChunkedResponseOpener",
    "ChunkedSender",
    "ClientRequest",
    "KeyConfig",
    "ServerKey",
    "ServerRequest",
    "encode_key_configs",
    "parse_key_configs",
    "preferred_config",
    "preferred_suite",
]

REQUEST_MEDIA_TYPE = "message/ohttp-req"
RESPONSE_MEDIA_TYPE = "message/ohttp-res"
CHUNKED_REQUEST_MEDIA_TYPE = "message/ohttp-chunked-req"
CHUNKED_RESPONSE_MEDIA_TYPE = "message/ohttp-chunked-res"
# RFC 9458 section 6.4: what a server answers, unsealed, to a key it does not have.
KEY_PROBLEM_TYPE = "https://iana.org/assignments/http-problem-types#ohttp-key"

# How many sealed bytes of one request a server takes by default.
MAX_MESSAGE = 1 << 25

_HEADER_SIZE = 7  # key id 1, KEM 2, KDF 2, AEAD 2 (RFC 9458 section 4.1)
_REQUEST_LABELS = (b"message/bhttp request", b"message/bhttp chunked request")
_RESPONSE_LABELS = (b"message/bhttp response", b"message/bhttp chunked response")


def _header(key_id: int, suite: Suite) -> bytes:
    return key_id.to_bytes(1, "big") + b"".join(part.to_bytes(2, "big") for part in suite)


def _info(header: bytes, chunked: bool) -> bytes:
    """HPKE info (RFC 9458 section 4.3; the draft's section 6.1)."""
    return _REQUEST_LABELS[chunked] + b"\x00" + header


def _nonce_size(suite: Suite) -> int:
    """Bytes of the response nonce: max(Nn, Nk)."""
    return max(NONCE_SIZE, suite.aead.key_size)


def _response_messages(
    context: SenderContext | ReceiverContext, enc: bytes, nonce: bytes, chunked: bool
) -> AeadSequence:
    """Derive the response's key and nonce (RFC 9458 section 4.4; the draft's section 6.2)."""
    aead = context.suite.aead
    secret = context.export(_RESPONSE_LABELS[chunked], _nonce_size(context.suite))
    prk = hkdf_extract(enc + nonce, secret)
    key = hkdf_expand(prk, b"key", aead.key_size)
    return AeadSequence(aead, key, hkdf_expand(prk, b"nonce", NONCE_SIZE))


def _setup_client(
    config: KeyConfig, suite: Suite | None, chunked: bool, random: Random
) -> tuple[bytes, bytes, SenderContext]:
    """Return (header, enc, context) for exactly the suite asked for.

    Raises ChannelError (code "channel.suite") when the configuration does not offer it, and
    never takes another in its place; MalformedError when the public key cannot be used.
    """
    chosen = preferred_suite(config) if suite is None else suite
    if chosen not in config.suites or chosen.kem is not config.kem:
        raise ChannelError("the key configuration does not offer this suite", code="channel.suite")
    header = _header(config.key_id, chosen)
    enc, context = setup_sender(chosen, config.public_key, _info(header, chunked), random=random)
    return header, enc, context


class ClientRequest:
    """One request and its response, each a single sealed message (RFC 9458 section 4).

    `suite` is what the caller chose; without one, the preferred suite of `config`. Raises as
    `_setup_client`: ChannelError (code "channel.suite") or MalformedError.
    """

    __slots__ = ("_context", "_header", "_sealed", "enc", "suite")

    def __init__(
        self, config: KeyConfig, suite: Suite | None = None, *, random: Random = os.urandom
    ) -> None:
        self._header, self.enc, self._context = _setup_client(config, suite, False, random)
        self.suite = self._context.suite
        self._sealed = False

    def seal(self, data: Buffer) -> bytes:
        """Return the Encapsulated Request. Raises RuntimeError the second time."""
        if self._sealed:
            raise RuntimeError("a request is sealed once")
        self._sealed = True
        return self._header + self.enc + self._context.seal(b"", data)

    def open_response(self, data: Buffer) -> bytes:
        """Open the Encapsulated Response. Raises the ChannelError of every failed open."""
        size = _nonce_size(self.suite)
        messages = _response_messages(self._context, self.enc, bytes(data[:size]), chunked=False)
        return messages.open(None, memoryview(data)[size:])


class ChunkedSender(ChunkSealer):
    """One chunked request: `start`, `chunk` and `pieces` of ChunkSealer, and its response.

    `suite` as for ClientRequest. `chunk_size` is the plaintext of a full chunk; other
    receivers need not take more than MAX_CHUNK bytes, and ours do not.
    """

    __slots__ = ("_context", "enc", "suite")

    def __init__(
        self,
        config: KeyConfig,
        suite: Suite | None = None,
        *,
        chunk_size: int = MAX_CHUNK,
        random: Random = os.urandom,
    ) -> None:
        header, self.enc, self._context = _setup_client(config, suite, True, random)
        self.suite = self._context.suite
        super().__init__(self._context.messages, header + self.enc, chunk_size)

    def response_opener(self) -> ChunkedResponseOpener:
        """Return what opens the chunked response to this request."""
        return ChunkedResponseOpener(self._context, self.enc)


class ChunkedResponseOpener:
    """Opens a chunked response, given in any division into byte strings."""

    __slots__ = ("_chunks", "_context", "_enc", "_nonce", "_nonce_size")

    def __init__(self, context: SenderContext, enc: bytes) -> None:
        self._context = context
        self._enc = enc
        self._nonce = bytearray()
        self._nonce_size = _nonce_size(context.suite)
        self._chunks: ChunkOpener | None = None

    @property
    def finished(self) -> bool:
        """Whether the final chunk has been opened: the response is complete."""
        return self._chunks is not None and self._chunks.finished

    def receive(self, data: Buffer) -> list[bytes]:
        """Take more of the response; return the plaintext of every chunk now complete.

        Raises the ChannelError of every failed open; RuntimeError after `finish`.
        """
        if self._chunks is not None:
            return self._chunks.receive(data)
        missing = self._nonce_size - len(self._nonce)
        self._nonce += data[:missing]
        if len(data) < missing:
            return []
        nonce = bytes(self._nonce)
        messages = _response_messages(self._context, self._enc, nonce, chunked=True)
        self._chunks = ChunkOpener(messages)
        return self._chunks.receive(memoryview(data)[missing:])

    def finish(self) -> bytes:
        """The transport's end: return the plaintext of the final chunk (may be empty).

        Raises TruncatedError without a final chunk; the ChannelError of every failed open.
        """
        if self._chunks is None:
            raise TruncatedError("the sealed message ended before its final chunk")
        return self._chunks.finish()


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
        nonce = random(_nonce_size(context.suite))
        return _response_messages(context, self._enc, nonce, chunked), nonce

    def _receive(self, data: Buffer) -> list[bytes]:
        if self._chunks is not None:
            return self._chunks.receive(data)
        self._buffer += data
        if self._context is None and not self._open_header():
            return []
        if not self._chunked:
            return []
        self._chunks = ChunkOpener(self._opened().messages)
        rest, self._buffer = self._buffer, bytearray()
        return self._chunks.receive(rest)

    def _open_header(self) -> bool:
        """Set up the context once the header is complete; return whether it is."""
        buffer = self._buffer
        if len(buffer) < _HEADER_SIZE:
            return False
        header = bytes(buffer[:_HEADER_SIZE])
        key = self._keys.get(header[0])
        # An algorithm that the key is not offered with is a key the client should not have.
        suites = () if key is None else key.config.suites
        suite = next((one for one in suites if _header(header[0], one) == header), None)
        if key is None or suite is None:
            raise _server_error("channel.unknown_key")
        end = _HEADER_SIZE + suite.kem.enc_size
        if len(buffer) < end:
            return False
        self._enc = bytes(buffer[_HEADER_SIZE:end])
        self._context = setup_receiver(
            suite, self._enc, key.private_key, _info(header, self._chunked)
        )
        self.key_id = header[0]
        del buffer[:end]
        return True

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
