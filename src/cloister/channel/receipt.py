"""Receipts of `aci/1` section 7: a worker's signed word on what it received and returned.

A receipt travels inside the seal. What it hashes is the inner Binary HTTP message, which
holds 32 random bytes from each side, so that a receipt alone does not confirm a guessed
prompt:

- ``request.received``: SHA-256 of all plaintext bytes of the request, padding included;
- ``response.returned``: SHA-256 of the response's bytes up to the end of its content (the
  receipt itself is in the trailer section that follows).

`docs/adr` records these departures from `aci/1`, which hashes bodies. Receipts of what came over
attested TLS do as it says: they hash bodies, and an event of theirs tells them apart.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.channel.keyset import Keyset
from cloister.errors import AuthenticationError, MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

API_VERSION = "aci/1"
RECEIPT_TRAILER = b"x-aci-receipt"
MAX_RECEIPT_BYTES = 16 * 1024
MAX_EVENTS = 32

REQUEST_RECEIVED = "request.received"
REQUEST_FORWARDED = "request.forwarded"
RESPONSE_RETURNED = "response.returned"
MODEL_SERVED = "cloister.model"
"""Added event: ``name`` and ``sha256`` of the model that answered."""
CHANNEL_USED = "cloister.channel"
"""Added event, only in receipts of what came over attested TLS: ``binding`` is ``tls``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One signed receipt, as received or as issued. Parsed is not authenticated."""

    document: JsonObject
    """All members, the signature among them."""

    @property
    def receipt_id(self) -> str:
        """The id a later look-up takes."""
        return expect_str(self.document.get("receipt_id"), "receipt_id", limit=128)

    @property
    def keyset_digest(self) -> str:
        """The keyset the receipt says it was signed under."""
        return expect_str(self.document.get("workload_keyset_digest"), "workload_keyset_digest")

    def encode(self) -> bytes:
        """Canonical JSON of the whole document."""
        return canonical(self.document)

    def to_trailer(self) -> bytes:
        """The value of the ``x-aci-receipt`` trailer: base64url without padding."""
        return base64.urlsafe_b64encode(self.encode()).rstrip(b"=")

    def event(self, kind: str) -> JsonObject:
        """The one event of type `kind`; `MalformedError` if there is none or more than one."""
        found = [event for event in self._events() if event.get("type") == kind]
        if len(found) != 1:
            raise MalformedError(f"the receipt has {len(found)} events of type {kind}")
        return found[0]

    def _events(self) -> list[JsonObject]:
        log = expect_list(self.document.get("event_log"), "event_log", limit=MAX_EVENTS)
        return [expect_object(event, "an event") for event in log]


def sign_receipt(document: JsonObject, *, key_id: str, key: Ed25519PrivateKey) -> Receipt:
    """Add ``key_id`` and the Ed25519 ``signature`` over the document's canonical form."""
    unsigned: JsonObject = {**document, "key_id": key_id}
    signature = key.sign(canonical(unsigned)).hex()
    return Receipt(document={**unsigned, "signature": signature})


def receipt_document(
    *,
    receipt_id: str,
    chat_id: str | None,
    model: str | None,
    keyset_digest: str,
    endpoint: str,
    method: str,
    served_at: int,
    events: list[JsonObject],
) -> JsonObject:
    """The members of `aci/1` section 7.3, without ``key_id`` and ``signature``."""
    log: list[Json] = list(events)
    return {
        "api_version": API_VERSION,
        "chat_id": chat_id,
        "endpoint": endpoint,
        "event_log": log,
        "method": method,
        "model": model,
        "receipt_id": receipt_id,
        "served_at": served_at,
        "workload_keyset_digest": keyset_digest,
    }


def hash_event(kind: str, digest: bytes) -> JsonObject:
    """An event that carries a 32-byte SHA-256 as ``body_hash``."""
    return {"body_hash": "sha256:" + digest.hex(), "type": kind}


def parse_receipt(data: bytes) -> Receipt:
    """Decode a receipt document (JSON, at most 16 KiB). Nothing is authenticated here.

    Raises MalformedError, and nothing else.
    """
    receipt = Receipt(document=parse_json_object(data, limit=MAX_RECEIPT_BYTES, what="the receipt"))
    expect_str(receipt.document.get("api_version"), "api_version")
    expect_str(receipt.document.get("key_id"), "key_id", limit=128)
    expect_hex(receipt.document.get("signature"), "signature", size=64)
    expect_int(receipt.document.get("served_at"), "served_at")
    _ = receipt.receipt_id, receipt.keyset_digest, receipt.event(RESPONSE_RETURNED)
    log = expect_list(receipt.document.get("event_log"), "event_log", limit=MAX_EVENTS)
    if not log or expect_object(log[0], "an event").get("type") != REQUEST_RECEIVED:
        raise MalformedError(f"the receipt's first event is not {REQUEST_RECEIVED}")
    return receipt


def parse_receipt_trailer(value: bytes) -> Receipt:
    """Decode the value of the ``x-aci-receipt`` trailer. Raises MalformedError only."""
    if len(value) > 2 * MAX_RECEIPT_BYTES:
        raise MalformedError("the receipt trailer is too long")
    try:
        padded = value + b"=" * (-len(value) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise MalformedError("the receipt trailer is not base64url") from None
    return parse_receipt(data)


def verify_receipt(
    receipt: Receipt, *, keyset: Keyset, request_hash: bytes, response_hash: bytes
) -> None:
    """Check a receipt against the attested keyset and what the client itself hashed.

    The steps of `aci/1` section 9.3: 1. signature by a key of `keyset`; 2. version and keyset
    digest; 3. request hash; 4. response hash. The caller still owes: that `keyset` is attested.

    Raises:
        AuthenticationError: one of the four does not hold; the code says which.
        MalformedError: a member is missing or not of its type.
    """
    document = receipt.document
    key_id = expect_str(document.get("key_id"), "key_id", limit=128)
    public = keyset.receipt_key(key_id)
    if public is None:
        raise AuthenticationError(
            "the receipt is signed by a key that the attested keyset does not list",
            code="receipt.key",
        )
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    signature = expect_hex(document.get("signature"), "signature", size=64)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical(unsigned))
    except InvalidSignature:
        raise AuthenticationError(
            "the receipt's signature does not verify", code="receipt.signature"
        ) from None
    if document.get("api_version") != API_VERSION or receipt.keyset_digest != keyset.digest:
        raise AuthenticationError(
            "the receipt is of another protocol version or keyset", code="receipt.keyset"
        )
    if receipt.event(REQUEST_RECEIVED).get("body_hash") != "sha256:" + request_hash.hex():
        raise AuthenticationError(
            "the receipt is for another request than the one sent", code="receipt.request"
        )
    if receipt.event(RESPONSE_RETURNED).get("body_hash") != "sha256:" + response_hash.hex():
        raise AuthenticationError(
            "the receipt is for another response than the one received", code="receipt.response"
        )
