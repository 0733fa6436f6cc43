"""A simulated AWS KMS: keys with policies, signatures checked, attestation documents verified.

It answers HTTP requests as `httpx2.MockTransport` hands them over::

    kms = SimulatedKms(roots=nitro.roots, now=lambda: at)
    kms.add_principal(credentials, "arn:aws:iam::111122223333:role/enclave")
    arn = kms.create_key(key_policy(...))
    client = KmsClient("eu-west-1", ..., http=httpx2.Client(transport=kms.transport))

As real KMS it checks a document's signature, chain and age, and compares its registers with the
conditions of the key's policy. It knows the operators and actions that `cloister.aws.key_policy`
writes, and raises for any other rather than guess.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import httpx2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.aws.credentials import Credentials
from cloister.aws.kms import KEY_ENCRYPTION
from cloister.aws.sigv4 import signed_headers
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.nitro import DocumentKind, NitroDocument, parse_document
from cloister.strictjson import canonical
from cloister.testing.simulated_kms_envelope import EnvelopeStyle, seal_envelope
from cloister.verifier.authenticate.nitro import authenticate_nitro
from cloister.verifier.ledger import Ledger

MAX_DOCUMENT_AGE: Final = timedelta(minutes=5)
_SKEW: Final = timedelta(minutes=5)
_MAX_PLAINTEXT: Final = 4096


class _RefusedError(Exception):
    """What KMS says no with."""


@dataclass(slots=True, kw_only=True)
class _Key:
    policy: Mapping[str, Any]
    material: bytes = field(repr=False)


class SimulatedKms:
    """KMS of one region and account. `style` is how it encodes envelopes; tests may change it."""

    def __init__(
        self,
        *,
        roots: Roots,
        now: Callable[[], datetime],
        region: str = "eu-west-1",
        account: str = "111122223333",
        style: EnvelopeStyle | None = None,
    ) -> None:
        self.style = EnvelopeStyle() if style is None else style
        self.log: list[tuple[str, str, str]] = []
        """Operation, principal, and ``allowed`` or the reason."""
        self.transport = httpx2.MockTransport(self.handle)
        self._roots = roots
        self._now = now
        self._region = region
        self._account = account
        self._keys: dict[str, _Key] = {}
        self._principals: dict[str, tuple[Credentials, str]] = {}

    def add_principal(self, credentials: Credentials, arn: str) -> None:
        """Whoever signs with `credentials` is `arn`."""
        self._principals[credentials.access_key_id] = (credentials, arn)

    def create_key(self, policy: Mapping[str, Any]) -> str:
        """A new key with this policy; its ARN."""
        name = f"{len(self._keys):08x}-0000-4000-8000-000000000000"
        arn = f"arn:aws:kms:{self._region}:{self._account}:key/{name}"
        self._keys[arn] = _Key(policy=policy, material=os.urandom(32))
        return arn

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        operation = request.headers.get("x-amz-target", "").removeprefix("TrentService.")
        principal = "nobody"
        try:
            principal = self._principal(request)
            members = json.loads(request.content)
            answer = self._perform(operation, principal, members)
        except _RefusedError as refused:
            self.log.append((operation, principal, str(refused)))
            return httpx2.Response(400, json={"__type": str(refused), "message": "simulated"})
        self.log.append((operation, principal, "allowed"))
        return httpx2.Response(200, json=answer)

    def _principal(self, request: httpx2.Request) -> str:
        authorization = request.headers.get("authorization", "")
        identifier = authorization.partition("Credential=")[2].partition("/")[0]
        if identifier not in self._principals:
            raise _RefusedError("UnrecognizedClientException")
        credentials, arn = self._principals[identifier]
        names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        stamp = request.headers.get("x-amz-date", "")
        if not {"host", "x-amz-date", "x-amz-target", "content-type"} <= set(names):
            raise _RefusedError("InvalidSignatureException")
        at = datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%SZ%z")
        given = {"host", "x-amz-date", "x-amz-security-token"}
        expected = signed_headers(
            host=request.headers["host"],
            region=self._region,
            service="kms",
            headers={name: request.headers[name] for name in names if name not in given},
            body=request.content,
            credentials=credentials,
            at=at,
        )
        if expected["authorization"] != authorization or abs(self._now() - at) > _SKEW:
            raise _RefusedError("InvalidSignatureException")
        if request.headers.get("x-amz-security-token") != credentials.session_token:
            raise _RefusedError("UnrecognizedClientException")
        if credentials.expires is not None and credentials.expires <= self._now():
            raise _RefusedError("ExpiredTokenException")
        return arn

    def _perform(self, operation: str, principal: str, members: Any) -> dict[str, Any]:
        arn = members.get("KeyId", "")
        key = self._keys.get(arn)
        if key is None:
            raise _RefusedError("NotFoundException")
        document = self._document(members.get("Recipient"))
        if not _allowed(key.policy, f"kms:{operation}", principal, document):
            raise _RefusedError("AccessDeniedException")
        context = canonical(members.get("EncryptionContext", {})) + arn.encode()
        match operation:
            case "Encrypt" if document is None:
                plaintext = base64.b64decode(members["Plaintext"])
                if len(plaintext) > _MAX_PLAINTEXT:
                    raise _RefusedError("ValidationException")
                return {"KeyId": arn, "CiphertextBlob": _wrap(key, plaintext, context)}
            case "GenerateDataKey":
                plaintext = os.urandom(32)
                answer = {"KeyId": arn, "CiphertextBlob": _wrap(key, plaintext, context)}
            case "Decrypt":
                plaintext = _unwrap(key, members["CiphertextBlob"], context)
                answer = {"KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
            case _:
                raise _RefusedError("ValidationException")
        if document is None:
            return {**answer, "Plaintext": _b64(plaintext)}
        envelope = seal_envelope(plaintext, _recipient_key(document), self.style)
        return {**answer, "CiphertextForRecipient": _b64(envelope), "Plaintext": ""}

    def _document(self, recipient: Any) -> NitroDocument | None:
        if recipient is None:
            return None
        if recipient.get("KeyEncryptionAlgorithm") != KEY_ENCRYPTION:
            raise _RefusedError("ValidationException")
        try:
            document = parse_document(base64.b64decode(recipient["AttestationDocument"]))
        except (MalformedError, ValueError, KeyError):
            raise _RefusedError("ValidationException") from None
        found = authenticate_nitro(document, roots=self._roots, at=self._now(), ledger=Ledger())
        if found.document is None or abs(self._now() - document.timestamp) > MAX_DOCUMENT_AGE:
            raise _RefusedError("ValidationException")
        return document


def _recipient_key(document: NitroDocument) -> RSAPublicKey:
    if document.public_key is None:
        raise _RefusedError("ValidationException")
    key = load_der_public_key(document.public_key)
    if not isinstance(key, RSAPublicKey) or key.key_size != 2048:
        raise _RefusedError("ValidationException")
    return key


def _allowed(
    policy: Mapping[str, Any], action: str, principal: str, document: NitroDocument | None
) -> bool:
    """IAM's logic for one policy: an explicit denial wins, and nothing is allowed by silence."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if action in statement["Action"]
        and _is_principal(statement["Principal"], principal)
        and _meets(statement.get("Condition", {}), document)
    }
    return "Allow" in effects and "Deny" not in effects


def _is_principal(listed: Any, principal: str) -> bool:
    if listed == "*":
        return True
    named = listed["AWS"]
    return principal in ([named] if isinstance(named, str) else named)


def _meets(condition: Mapping[str, Any], document: NitroDocument | None) -> bool:
    found = _condition_keys(document)
    for operator, keys in condition.items():
        if operator not in {"StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase"}:
            raise NotImplementedError(f"this simulation does not know {operator}")
        for name, values in keys.items():
            accepted = [values] if isinstance(values, str) else values
            equal = found.get(name) in [value.lower() for value in accepted]
            if equal == operator.startswith("StringNot"):
                return False
    return True


def _condition_keys(document: NitroDocument | None) -> dict[str, str]:
    if document is None:
        return {}
    name = "PCR" if document.kind is DocumentKind.ENCLAVE else "NitroTPMPCR"
    keys = {
        f"kms:RecipientAttestation:{name}{index}": value.hex()
        for index, value in document.pcrs.items()
    }
    if document.kind is DocumentKind.ENCLAVE and 0 in document.pcrs:
        keys["kms:RecipientAttestation:ImageSha384"] = document.pcrs[0].hex()
    return keys


def _wrap(key: _Key, plaintext: bytes, context: bytes) -> str:
    nonce = os.urandom(12)
    return _b64(nonce + AESGCM(key.material).encrypt(nonce, plaintext, context))


def _unwrap(key: _Key, text: str, context: bytes) -> bytes:
    wrapped = base64.b64decode(text)
    try:
        return AESGCM(key.material).decrypt(wrapped[:12], wrapped[12:], context)
    except (InvalidTag, ValueError):
        raise _RefusedError("InvalidCiphertextException") from None


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
