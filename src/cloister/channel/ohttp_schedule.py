"""What both ends of Oblivious HTTP derive: header, HPKE info, response key and nonce.

RFC 9458 sections 4.1, 4.3 and 4.4 for whole messages; draft-ietf-ohai-chunked-ohttp-08 section
6 for chunks. The two differ only in their labels, so that neither opens as the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.channel.hpke import NONCE_SIZE, AeadSequence, hkdf_expand, hkdf_extract

if TYPE_CHECKING:
    from cloister.channel.hpke import ReceiverContext, SenderContext, Suite

HEADER_SIZE = 7  # key id 1, KEM 2, KDF 2, AEAD 2

# Indexed by whether the message is chunked.
_REQUEST_LABELS = (b"message/bhttp request", b"message/bhttp chunked request")
_RESPONSE_LABELS = (b"message/bhttp response", b"message/bhttp chunked response")


def request_header(key_id: int, suite: Suite) -> bytes:
    """Return the 7 bytes a request starts with (RFC 9458 section 4.1)."""
    return key_id.to_bytes(1, "big") + b"".join(part.to_bytes(2, "big") for part in suite)


def request_info(header: bytes, chunked: bool) -> bytes:
    """HPKE info (RFC 9458 section 4.3; the draft's section 6.1)."""
    return _REQUEST_LABELS[chunked] + b"\x00" + header


def nonce_size(suite: Suite) -> int:
    """Bytes of the response nonce: max(Nn, Nk)."""
    return max(NONCE_SIZE, suite.aead.key_size)


def response_messages(
    context: SenderContext | ReceiverContext, enc: bytes, nonce: bytes, chunked: bool
) -> AeadSequence:
    """Derive the response's key and nonce (RFC 9458 section 4.4; the draft's section 6.2)."""
    aead = context.suite.aead
    secret = context.export(_RESPONSE_LABELS[chunked], nonce_size(context.suite))
    prk = hkdf_extract(enc + nonce, secret)
    key = hkdf_expand(prk, b"key", aead.key_size)
    return AeadSequence(aead, key, hkdf_expand(prk, b"nonce", NONCE_SIZE))
