"""A client of AWS KMS: four operations, strict answers, over any transport.

Source: AWS Key Management Service API Reference (JSON 1.1; ``TrentService``). TLS ends in this
process, so that a forwarder in between (an enclave's parent) carries ciphertext; the address it
is reached at is the transport's business (`cloister.streams.route`).

No request is repeated: the caller knows whether that would be safe.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import httpx2

from cloister.aws.credentials import Credentials
from cloister.aws.sigv4 import signed_headers
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    FetchError,
    KeyReleaseDenied,
    MalformedError,
)
from cloister.strictjson import JsonObject, decode_base64, parse_json_object

MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_CIPHERTEXT_BYTES: Final = 6144
"""Of a ``CiphertextBlob`` (API reference)."""
MAX_PLAINTEXT_BYTES: Final = 4096
DATA_KEY_BYTES: Final = 32
TIMEOUT_S: Final = 10.0
KEY_ENCRYPTION: Final = "RSAES_OAEP_SHA_256"

Context = Mapping[str, str]
"""An encryption context: bound to the ciphertext, seen by AWS and its logs, never secret."""

_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}")
_ERROR: Final = re.compile(r"[A-Za-z]{1,64}")
_DENIED: Final = frozenset(
    {
        "AccessDeniedException",
        "DisabledException",
        "IncorrectKeyException",
        "InvalidCiphertextException",
        "InvalidGrantTokenException",
        "KeyUnavailableException",
        "KMSInvalidStateException",
        "NotFoundException",
        "UnrecognizedClientException",
        "ExpiredTokenException",
        "InvalidSignatureException",
        "ValidationException",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Who an answer is encrypted to: whoever the document attests, and no other."""

    attestation_document: bytes

    def to_json(self) -> JsonObject:
        """The request's member."""
        return {
            "AttestationDocument": _b64(self.attestation_document),
            "KeyEncryptionAlgorithm": KEY_ENCRYPTION,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsAnswer:
    """What an operation returned; which of these depends on the operation."""

    key_id: str
    """The key's ARN."""
    ciphertext: bytes | None = None
    """``CiphertextBlob``."""
    plaintext: bytes | None = field(default=None, repr=False)
    for_recipient: bytes | None = None
    """``CiphertextForRecipient``: an envelope (`cloister.aws.cms`)."""


class KmsClient:
    """Speaks to KMS in one region.

    `credentials` is asked for each request. `http` has to check certificates, as httpx2 does
    unless told otherwise; its transport may lead through a forwarder.
    """

    def __init__(
        self,
        region: str,
        *,
        credentials: Callable[[], Credentials],
        http: httpx2.Client,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        host: str | None = None,
    ) -> None:
        if _REGION.fullmatch(region) is None:
            raise ConfigurationError("that is no AWS region", code="kms.region")
        self.region = region
        self._host = f"kms.{region}.amazonaws.com" if host is None else host
        self._credentials = credentials
        self._http = http
        self._now = now

    def decrypt(
        self, ciphertext: bytes, *, key_id: str, context: Context, recipient: Recipient | None
    ) -> KmsAnswer:
        """``Decrypt`` of what `key_id` encrypted for `context`. Raises as `_call`."""
        return self._call(
            "Decrypt",
            {
                "CiphertextBlob": _b64(_bounded(ciphertext, MAX_CIPHERTEXT_BYTES)),
                "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                **_key_and_context(key_id, context),
            },
            recipient,
        )

    def generate_data_key(
        self, *, key_id: str, context: Context, recipient: Recipient | None
    ) -> KmsAnswer:
        """``GenerateDataKey`` of 32 bytes, under `key_id` and `context`. Raises as `_call`."""
        request: JsonObject = {"KeySpec": "AES_256", **_key_and_context(key_id, context)}
        return self._call("GenerateDataKey", request, recipient)

    def encrypt(self, plaintext: bytes, *, key_id: str, context: Context) -> KmsAnswer:
        """``Encrypt`` at most 4096 bytes; no attestation is possible here. Raises as `_call`."""
        return self._call(
            "Encrypt",
            {
                "Plaintext": _b64(_bounded(plaintext, MAX_PLAINTEXT_BYTES)),
                **_key_and_context(key_id, context),
            },
            None,
        )

    def _call(self, operation: str, request: JsonObject, recipient: Recipient | None) -> KmsAnswer:
        """Sign, send, and read one answer.

        Raises:
            KeyReleaseDenied: KMS refuses (code ``kms.denied``), with the name of its reason.
            FetchError: KMS cannot be reached, is busy, or failed.
            MalformedError: the answer is none of KMS.
            AuthenticationError: it contains a plaintext that should have been encrypted to us.
        """
        if recipient is not None:
            request = {**request, "Recipient": recipient.to_json()}
        body = json.dumps(request).encode()
        status, content = self._post(operation, body)
        if status != 200:
            raise _refusal(operation, status, content)
        members = parse_json_object(
            content, limit=MAX_ANSWER_BYTES, what="the answer of KMS", code="kms.answer"
        )
        return _answer(members, attested=recipient is not None)

    def _post(self, operation: str, body: bytes) -> tuple[int, bytes]:
        headers = signed_headers(
            host=self._host,
            region=self.region,
            service="kms",
            headers={
                "content-type": "application/x-amz-json-1.1",
                "x-amz-target": f"TrentService.{operation}",
            },
            body=body,
            credentials=self._fresh_credentials(),
            at=self._now(),
        )
        try:
            with self._http.stream(
                "POST",
                f"https://{self._host}/",
                headers={**headers, "accept-encoding": "identity"},
                content=body,
                timeout=TIMEOUT_S,
                follow_redirects=False,
            ) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    # A few bytes would become more than the bound below in one piece.
                    raise MalformedError("the answer of KMS is compressed", code="kms.answer")
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MAX_ANSWER_BYTES:
                        raise MalformedError("the answer of KMS is too long", code="kms.answer")
                return response.status_code, bytes(content)
        except httpx2.HTTPError as error:
            raise FetchError(
                f"KMS cannot be reached ({type(error).__name__})", code="kms.unreachable"
            ) from None

    def _fresh_credentials(self) -> Credentials:
        credentials = self._credentials()
        if credentials.expires is not None and credentials.expires <= self._now():
            raise ConfigurationError("the AWS credentials have expired", code="kms.credentials")
        return credentials


def _key_and_context(key_id: str, context: Context) -> JsonObject:
    """Both always: without the key any key of the account would do, without a context any use."""
    if not key_id or not context:
        raise ValueError("a request names its key, and has an encryption context")
    return {"KeyId": key_id, "EncryptionContext": dict(context)}


def _answer(members: JsonObject, *, attested: bool) -> KmsAnswer:
    key_id = members.get("KeyId")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 2048:
        raise MalformedError("the answer of KMS names no key", code="kms.answer")
    answer = KmsAnswer(
        key_id=key_id,
        ciphertext=_bytes(members, "CiphertextBlob"),
        plaintext=_bytes(members, "Plaintext"),
        for_recipient=_bytes(members, "CiphertextForRecipient"),
    )
    if attested and (answer.plaintext is not None or answer.for_recipient is None):
        raise AuthenticationError(
            "KMS answered as if no attestation document had come with the request",
            code="kms.not_attested",
        )
    return answer


def _bytes(members: JsonObject, name: str) -> bytes | None:
    """A member in base64; missing, null and empty are the same (KMS has written all three)."""
    value = members.get(name)
    if value is None or value == "":
        return None
    return decode_base64(value, limit=MAX_ANSWER_BYTES, what=name, code="kms.answer")


def _refusal(
    operation: str, status: int, content: bytes
) -> KeyReleaseDenied | FetchError | MalformedError:
    try:
        members = parse_json_object(content, limit=MAX_ANSWER_BYTES, what="the error")
    except MalformedError:
        members = {}
    kind = str(members.get("__type", "")).rpartition("#")[2]
    if _ERROR.fullmatch(kind) is None:  # what KMS says besides may name people and keys
        kind = "unknown error"
    sentence = f"KMS refuses {operation}: {kind} (status {status})"
    if status == 400 and kind in _DENIED:
        return KeyReleaseDenied(sentence, code="kms.denied")
    return FetchError(sentence, code="kms.failed")


def _bounded(data: bytes, limit: int) -> bytes:
    if not 0 < len(data) <= limit:
        raise MalformedError(f"KMS takes 1 to {limit} bytes here", code="kms.size")
    return data


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
