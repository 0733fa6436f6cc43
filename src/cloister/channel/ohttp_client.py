"""The client's end of Oblivious HTTP: seal a request, open its response."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloister.channel.hpke import setup_sender
from cloister.channel.ohttp_chunks import MAX_CHUNK, ChunkOpener, ChunkSealer
from cloister.channel.ohttp_keys import preferred_suite
from cloister.channel.ohttp_schedule import (
    nonce_size,
    request_header,
    request_info,
    response_messages,
)
from cloister.errors import ChannelError, TruncatedError

if TYPE_CHECKING:
    from cloister.channel.hpke import SenderContext, Suite
    from cloister.channel.hpke_kem import Random
    from cloister.channel.ohttp_chunks import Buffer
    from cloister.channel.ohttp_keys import KeyConfig


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
    header = request_header(config.key_id, chosen)
    enc, context = setup_sender(
        chosen, config.opened_public_key(), request_info(header, chunked), random=random
    )
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
        size = nonce_size(self.suite)
        messages = response_messages(self._context, self.enc, bytes(data[:size]), chunked=False)
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
        self._nonce_size = nonce_size(context.suite)
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
        messages = response_messages(self._context, self._enc, nonce, chunked=True)
        self._chunks = ChunkOpener(messages)
        return self._chunks.receive(memoryview(data)[missing:])

    def finish(self) -> bytes:
        """The transport's end: return the plaintext of the final chunk (may be empty).

        Raises TruncatedError without a final chunk; the ChannelError of every failed open.
        """
        if self._chunks is None:
            raise TruncatedError("the sealed message ended before its final chunk")
        return self._chunks.finish()
