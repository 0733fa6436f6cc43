"""A sealed channel to one affirmed worker. No I/O: requests out, response bytes in.

The one entry is `Session`, which takes an `AffirmedAttester`: what
`AttestationResult.require_affirming` hands out for evidence that was affirmed, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from threading import Thread

from cloister.channel import bhttp
from cloister.channel.hpke import TAG_SIZE
from cloister.channel.keyset import Keyset
from cloister.channel.ohttp import MAX_CHUNK, ChunkedSender, KeyConfig, preferred_config
from cloister.client.exchange import SealedExchange
from cloister.client.opening import ResponseOpening
from cloister.client.request import InnerRequest
from cloister.client.settings import ClientSettings, Effects
from cloister.errors import ChannelError, UnsupportedError
from cloister.verifier.result import AffirmedAttester

NONCE_SIZE = 32

# Below this one write is cheaper than several; above it sealing is worth overlapping with it.
_SEALED_AT_ONCE = 128 * 1024
_HASHED_ASIDE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRequest:
    """Ciphertext to post, and what opens its answer."""

    pieces: Iterable[bytes]
    """The sealed bytes, in pieces of some tens of kilobytes; to be taken once.

    A large request is sealed as its pieces are taken, so that sealing and sending overlap.
    """
    length: int
    """Of all pieces together."""
    opening: ResponseOpening


class Session:
    """Seals requests to one affirmed worker; safe to use from several threads.

    Raises:
        TypeError: `attester` is not what `require_affirming` returned.
        ChannelError: the attested keyset lists no key that can be sealed to (code
            ``channel.suite``).
    """

    def __init__(
        self,
        attester: AffirmedAttester,
        *,
        settings: ClientSettings | None = None,
        effects: Effects | None = None,
    ) -> None:
        self.attester = attester
        self._keyset = _attested_keyset(attester)
        self._config = preferred_config(_known_configs(self._keyset))
        self._settings = settings if settings is not None else ClientSettings()
        self._effects = effects if effects is not None else Effects()

    def seal(
        self, inner: InnerRequest, *, date: float, exchange: SealedExchange | None = None
    ) -> SealedRequest:
        """Seal `inner` once, dated `date` (Unix time), with a fresh encapsulated key and nonce.

        Raises:
            ChannelError: the body is larger than the settings allow (code ``channel.too_large``).
        """
        settings = self._settings
        if len(inner.body) > settings.max_request_body:
            raise ChannelError(
                f"the request's body is larger than {settings.max_request_body} bytes",
                code="channel.too_large",
            )
        random = self._effects.random
        parts = bhttp.encode_request_parts(
            bhttp.RequestHead(
                method=inner.method,
                scheme=inner.scheme,
                authority=inner.authority,
                path=inner.path,
                headers=inner.fields(date=date, nonce=random(NONCE_SIZE)),
            ),
            inner.body,
            padding_to=settings.request_padding,
        )
        sender = ChunkedSender(self._config, random=random)
        header = sender.start()
        size = sum(map(len, parts))
        pieces: Iterable[bytes] = chain((header,), sender.pieces(parts, final=True))
        if size < _SEALED_AT_ONCE:
            pieces = (b"".join(pieces),)
        opening = ResponseOpening(
            opener=sender.response_opener(),
            exchange=exchange if exchange is not None else SealedExchange(attester=self.attester),
            keyset=self._keyset,
            request_hash=MessageHash(parts).digest,
            settings=settings,
            post=inner.method == b"POST",
        )
        return SealedRequest(
            pieces=pieces, length=len(header) + sealed_length(size), opening=opening
        )


class MessageHash:
    """SHA-256 of a message given in parts: needed at the end of the answer, so not before.

    A large one is hashed in a thread, beside sealing and sending it (hashing and encrypting let
    other threads run); a small one when it is asked for.
    """

    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._parts = parts
        self._digest = b""
        self._thread: Thread | None = None
        if sum(map(len, parts)) >= _HASHED_ASIDE:
            self._thread = Thread(target=self._hash, name="cloister-hash", daemon=True)
            self._thread.start()

    def digest(self) -> bytes:
        """The 32 bytes."""
        if self._thread is None:
            self._hash()
        else:
            self._thread.join()
        return self._digest

    def _hash(self) -> None:
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part)
        self._digest = digest.digest()


def sealed_length(size: int) -> int:
    """Bytes that `size` bytes become as chunks of `MAX_CHUNK`, without the header in front."""
    full = max(0, -(-size // MAX_CHUNK) - 1)
    # Each chunk before the final one: its length on 4 bytes, and a tag. The final one: a zero
    # on 1 byte, and a tag.
    return size + full * (4 + TAG_SIZE) + 1 + TAG_SIZE


def _attested_keyset(attester: object) -> Keyset:
    if not isinstance(attester, AffirmedAttester) or not isinstance(attester.keyset, Keyset):
        raise TypeError("a session takes the AffirmedAttester of require_affirming()")
    return attester.keyset


def _known_configs(keyset: Keyset) -> tuple[KeyConfig, ...]:
    """The attested key configurations that this version can seal to, in the worker's order."""
    configs = []
    for encoded in keyset.ohttp_key_configs():
        try:
            configs.append(KeyConfig.parse(encoded))
        except UnsupportedError:
            continue  # a key of a later version, beside those known here
    return tuple(configs)
