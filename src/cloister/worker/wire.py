"""Names on the wire between client and worker, and how the inner request's fields are read."""

from __future__ import annotations

import base64
import binascii
from email.utils import formatdate, parsedate_to_datetime
from typing import Final

# Outside the seal.
OHTTP_PATH: Final = "/ohttp"
KEYS_PATH: Final = "/ohttp-keys"
ATTESTATION_PATH: Final = "/v1/aci/attestation"
REQUEST_TYPE: Final = b"message/ohttp-req"
CHUNKED_REQUEST_TYPE: Final = b"message/ohttp-chunked-req"
RESPONSE_TYPE: Final = b"message/ohttp-res"
CHUNKED_RESPONSE_TYPE: Final = b"message/ohttp-chunked-res"
PIN_PATH: Final = "/tls-certificate"
PIN_TYPE: Final = b"application/pem-certificate-chain"
KEYS_TYPE: Final = b"application/ohttp-keys"
PROBLEM_TYPE: Final = b"application/problem+json"
JSON_TYPE: Final = b"application/json"
OHTTP_KEY_PROBLEM: Final = "https://iana.org/assignments/http-problem-types#ohttp-key"
DATE_PROBLEM: Final = "https://iana.org/assignments/http-problem-types#date"

# Inside the seal. Binary HTTP carries field names in lower case (RFC 9292 section 3.6).
RECEIPTS_PREFIX: Final = "/v1/aci/receipts/"
CLIENT_NONCE: Final = b"x-cloister-nonce"
WORKER_NONCE: Final = b"x-cloister-nonce"
CACHE_SECRET: Final = b"x-cloister-cache-secret"
API_KEY: Final = b"x-api-key"
IDEMPOTENCY_KEY: Final = b"idempotency-key"
ACI_VERSION: Final = b"x-aci-version"
KEYSET_DIGEST: Final = b"x-aci-keyset-digest"
RECEIPT_ID: Final = b"x-receipt-id"
SHOULD_RETRY: Final = b"x-should-retry"

NONCE_SIZE: Final = 32
CACHE_SECRET_SIZE: Final = 32

MESSAGES_PREFIX: Final = b"/v1/messages"
"""Anthropic's paths, whose errors have Anthropic's shape."""

Headers = tuple[tuple[bytes, bytes], ...]


def is_anthropic(target: bytes) -> bool:
    """Whether a request's path (and query) is one of Anthropic's."""
    path = target.partition(b"?")[0]
    return path == MESSAGES_PREFIX or path.startswith(MESSAGES_PREFIX + b"/")


def one_field(headers: Headers, name: bytes) -> bytes | None:
    """Return the one field called `name`, ``None`` if there is none.

    Raises ValueError when there are several: two readers would pick different ones.
    """
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise ValueError("a field is repeated")
    return found[0] if found else None


def decode_secret(value: bytes, size: int) -> bytes:
    """Decode `size` bytes of base64url without padding; ValueError if it is anything else."""
    try:
        data = base64.b64decode(value + b"=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if len(data) != size or encode_secret(data) != value:
        raise ValueError("not base64url of the right size")
    return data


def encode_secret(data: bytes) -> bytes:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def http_date(at: float) -> bytes:
    """IMF-fixdate (RFC 9110 section 5.6.7) of Unix time `at`."""
    return formatdate(at, usegmt=True).encode("ascii")


def parse_http_date(value: bytes) -> float:
    """Unix time of an HTTP date; ValueError if it is none."""
    try:
        return parsedate_to_datetime(value.decode("ascii")).timestamp()
    except (TypeError, OverflowError, UnicodeDecodeError):
        raise ValueError("not an HTTP date") from None
