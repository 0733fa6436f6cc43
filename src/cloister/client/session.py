"""A sealed channel to one affirmed worker. No I/O: requests out, response bytes in.

The one entry is `Session`, which takes an `AffirmedAttester`: what
`AttestationResult.require_affirming` hands out for evidence that was affirmed, and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cloister.channel import bhttp
from cloister.channel.keyset import Keyset
from cloister.channel.ohttp import ChunkedSender, KeyConfig, preferred_config
from cloister.client.exchange import SealedExchange
from cloister.client.opening import ResponseOpening
from cloister.client.request import InnerRequest
from cloister.client.settings import ClientSettings, Effects
from cloister.errors import ChannelError, UnsupportedError
from cloister.verifier.result import AffirmedAttester

NONCE_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRequest:
    """Ciphertext to post, and what opens its answer."""

    pieces: tuple[bytes, ...]
    """The sealed bytes, in pieces of a few hundred kilobytes."""
    length: int
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
        pieces = tuple(sender.pieces(parts, final=True))
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        opening = ResponseOpening(
            opener=sender.response_opener(),
            exchange=exchange if exchange is not None else SealedExchange(attester=self.attester),
            keyset=self._keyset,
            request_hash=digest.digest(),
            settings=settings,
            post=inner.method == b"POST",
        )
        return SealedRequest(pieces=pieces, length=sum(map(len, pieces)), opening=opening)


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
