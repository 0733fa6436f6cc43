"""Attestation results as signed JSON Web Tokens (RFC 7519; EAR, draft-ietf-rats-ear section 4).

A result is worth as much as the verifier's key: whoever reads a token pins that key, the
algorithm follows from it (never from the token), and a token without an end is refused.
Needs the package ``joserfc`` (extra ``cloister[jwt]``).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeGuard

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.strictjson import Json, JsonObject, parse_json_object
from cloister.verifier.ear import EAT_PROFILE

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OKPKey

LIFETIME: Final = timedelta(minutes=5)
"""How long a result is good for, as key brokers in use issue theirs."""

CLOCK_SKEW: Final = timedelta(minutes=1)
"""By how much two clocks may differ."""

MAX_TOKEN_BYTES: Final = 1024 * 1024

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384"}

SigningKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
VerifyingKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


def load_signing_key(pem: bytes) -> SigningKey:
    """Read an unencrypted PEM private key on P-256, P-384 or Ed25519.

    Raises:
        ConfigurationError: it is none (code ``jwt.key``).
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    ):
        return key
    raise ConfigurationError(
        "the signing key is not an unencrypted PEM key on P-256, P-384 or Ed25519", code="jwt.key"
    )


def sign_ear(
    ear: JsonObject, key: SigningKey, *, lifetime: timedelta = LIFETIME, key_id: str | None = None
) -> str:
    """Sign a claims-set of `cloister.verifier.ear.to_ear`; it expires `lifetime` after ``iat``."""
    from joserfc import jws

    issued_at = ear.get("iat")
    if not isinstance(issued_at, int):
        raise TypeError("an EAR says when it was issued")
    claims: JsonObject = {**ear, "exp": issued_at + int(lifetime.total_seconds())}
    algorithm, jwk = _jose_key(key)
    header = {"alg": algorithm, "typ": "JWT"}
    if key_id is not None:
        header["kid"] = key_id
    payload = json.dumps(claims, separators=(",", ":"), ensure_ascii=False)
    return jws.serialize_compact(header, payload, jwk, algorithms=[algorithm])


def open_ear(token: str, key: VerifyingKey, *, at: datetime) -> JsonObject:
    """Return the claims-set of a token that `key` signed and that is current at `at` (aware).

    What it says is for the caller to read: a signed refusal opens like a signed affirmation.

    Raises:
        MalformedError: it is no EAR (code ``jwt.malformed``).
        AuthenticationError: not signed by `key`, or not current (``jwt.signature``,
            ``jwt.expired``).
    """
    from joserfc import jws
    from joserfc.errors import BadSignatureError, JoseError

    if at.tzinfo is None:
        raise ValueError("the time of verification needs a time zone")
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedError("the token is too long", code="jwt.malformed")
    algorithm, jwk = _jose_key(key)
    try:
        opened = jws.deserialize_compact(token, jwk, algorithms=[algorithm])
    except BadSignatureError:
        raise AuthenticationError(
            "the token was not signed by the key given", code="jwt.signature"
        ) from None
    except (JoseError, ValueError, TypeError):
        raise MalformedError(
            f"the token is none that a key for {algorithm} signs", code="jwt.malformed"
        ) from None
    claims = parse_json_object(
        opened.payload, limit=MAX_TOKEN_BYTES, what="the token", code="jwt.malformed"
    )
    if claims.get("eat_profile") != EAT_PROFILE:
        raise MalformedError("the token is no attestation result", code="jwt.malformed")
    _check_dates(claims, at)
    return claims


def _check_dates(claims: JsonObject, at: datetime) -> None:
    issued_at, until = claims.get("iat"), claims.get("exp")
    begins = claims.get("nbf", issued_at)
    if not (_is_seconds(issued_at) and _is_seconds(until) and _is_seconds(begins)):
        raise MalformedError("the token does not say until when it holds", code="jwt.malformed")
    now, skew = at.timestamp(), CLOCK_SKEW.total_seconds()
    if not max(issued_at, begins) - skew <= now < until:
        raise AuthenticationError("the token is not current", code="jwt.expired")


def _is_seconds(value: Json) -> TypeGuard[int]:
    """To Python, true is a number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _jose_key(key: SigningKey | VerifyingKey) -> tuple[str, ECKey | OKPKey]:
    """The one algorithm that goes with a key, and the key as the library wants it."""
    from joserfc.jwk import ECKey, OKPKey

    if isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        return "Ed25519", OKPKey.import_key(key)
    algorithm = _CURVES.get(key.curve.name)
    if algorithm is None:
        raise ConfigurationError("tokens are signed on P-256, P-384 or Ed25519", code="jwt.key")
    return algorithm, ECKey.import_key(key)


def public_pem(key: SigningKey) -> bytes:
    """The public half of `key` as PEM, for those who pin it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
