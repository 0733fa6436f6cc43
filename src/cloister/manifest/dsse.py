"""Signed envelopes: DSSE v1 (github.com/secure-systems-lab/dsse, ``envelope.md``, ``protocol.md``).

::

    {"payload": "<base64>", "payloadType": "…", "signatures": [{"keyid": "…", "sig": "<base64>"}]}

A signature covers the pre-authentication encoding of type and payload, never the JSON around them.
The specification lets readers take URL-safe base64 and ignore members that they do not know; here
each envelope has one spelling, so both are refused. ``keyid`` is a hint at the key and proves
nothing.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    decode_base64,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)

MAX_SIGNATURES: Final = 64
MAX_SIGNATURE_BYTES: Final = 64 * 1024
"""A Sigstore bundle takes some ten kilobytes; signatures of plain keys at most 3,309 bytes."""
MAX_TYPE: Final = 256

_WHAT: Final = "an envelope"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature over an envelope, whoever may have made it."""

    key_id: str
    data: bytes = field(repr=False)

    def to_json(self) -> JsonObject:
        """The entry as the envelope writes it."""
        return {"keyid": self.key_id, "sig": base64.b64encode(self.data).decode("ascii")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload with signatures. Nothing is authenticated."""

    payload_type: str
    payload: bytes = field(repr=False)
    """The exact bytes that signatures cover."""
    signatures: tuple[Signature, ...] = ()

    @property
    def signed_bytes(self) -> bytes:
        """What each signature covers."""
        return pre_authentication_encoding(self.payload_type, self.payload)

    def to_json(self) -> JsonObject:
        """The envelope as a JSON object."""
        signatures: list[Json] = [signature.to_json() for signature in self.signatures]
        return {
            "payload": base64.b64encode(self.payload).decode("ascii"),
            "payloadType": self.payload_type,
            "signatures": signatures,
        }


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of ``protocol.md``: ``DSSEv1``, then length and bytes of type and of payload."""
    named = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(named), named, len(payload), payload)


def parse_envelope(value: object, *, payload_type: str, limit: int) -> Envelope:
    """Read an envelope whose payload has this type and at most `limit` bytes.

    Raises MalformedError, and nothing else.
    """
    members = expect_object(value, _WHAT)
    expect_keys(members, _WHAT, required={"payload", "payloadType", "signatures"})
    if expect_str(members["payloadType"], "payloadType", limit=MAX_TYPE) != payload_type:
        raise MalformedError(f"{_WHAT} holds something else than {payload_type}")
    listed = expect_list(members["signatures"], "signatures", limit=MAX_SIGNATURES)
    signatures = tuple(_signature(entry) for entry in listed)
    if len({signature.key_id for signature in signatures}) != len(signatures):
        raise MalformedError(f"{_WHAT} has two signatures by one key")
    return Envelope(
        payload_type=payload_type,
        payload=decode_base64(members["payload"], limit=limit, what="a payload"),
        signatures=signatures,
    )


def _signature(value: object) -> Signature:
    members = expect_object(value, "a signature")
    expect_keys(members, "a signature", required={"keyid", "sig"})
    return Signature(
        key_id=expect_str(members["keyid"], "keyid", limit=256),
        data=decode_base64(members["sig"], limit=MAX_SIGNATURE_BYTES, what="a signature"),
    )
