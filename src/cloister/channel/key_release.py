"""What a worker and a broker say to each other about one key, as records and pure functions.

The worker's hardware signs a statement that names the purpose, the broker, the secret, the
broker's nonce, the worker's keyset and a wrapping key made for this one release. Its template
differs from that of a public report (`cloister.channel.statement`), so neither can be spent where
the other is asked for. The broker answers with the secret sealed to the wrapping key (RFC 9180,
ML-KEM-768 with X25519) and signed by its identity key (Ed25519): base-mode HPKE alone would let
anybody hand the worker a key of their own.

Like the public statement, this one is a fixed template that the broker builds for itself.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.channel.hpke import (
    Aead,
    Kdf,
    Kem,
    PrivateKey,
    Suite,
    setup_receiver,
    setup_sender,
)
from cloister.channel.resource_uri import ResourceUri
from cloister.channel.statement import NONCE_SIZE
from cloister.errors import AuthenticationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_int,
    expect_keys,
    expect_str,
    parse_json_object,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Random = Callable[[int], bytes]

RELEASE_PURPOSE: Final = "cloister.key_release.v1"
BROKER_PURPOSE: Final = "cloister.broker.v1"

SUITE: Final = Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
WRAPPING_KEY_SIZE: Final = Kem.MLKEM768_X25519.public_size

IDENTITY_PREFIX: Final = "ed25519:"
MAX_SECRET_BYTES: Final = 64 * 1024
"""Of one secret. A weights key has 32."""
MAX_VERSION: Final = 1_000_000
MAX_ANSWER_BYTES: Final = 128 * 1024

_SIGNED: Final = b"cloister.key_release.answer.v1\0"
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """A broker's Ed25519 public key: 32 bytes, written ``ed25519:<64 hex>``."""

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != 32:
            raise MalformedError("a broker's identity has 32 bytes", code="broker.identity")

    def __str__(self) -> str:
        return IDENTITY_PREFIX + self.public_key.hex()

    @classmethod
    def parse(cls, text: str) -> BrokerIdentity:
        """Read ``ed25519:<64 hex>``; MalformedError (``broker.identity``) otherwise."""
        digits = text.removeprefix(IDENTITY_PREFIX)
        if not text.startswith(IDENTITY_PREFIX) or len(digits) != 64 or not set(digits) <= _HEX:
            raise MalformedError(
                "a broker's identity is written ed25519: and 64 lower-case hex characters",
                code="broker.identity",
            )
        return cls(bytes.fromhex(digits))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """What one release is about. Broker and worker each build their own and compare digests."""

    broker: BrokerIdentity
    resource: ResourceUri
    version: int | None
    """A version of the secret by number, or ``None`` for the one in force."""
    wrapping_key: bytes
    """The public half, `WRAPPING_KEY_SIZE` bytes; made for this release alone."""

    def statement(self, keyset_digest: str, nonce: bytes | None) -> bytes:
        """The statement that evidence has to bind; `nonce` is the broker's, 32 bytes.

        Without a nonce it is what no broker accepts: verifiers compare with it to say so.
        """
        if nonce is not None and len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
        return canonical(
            {
                "broker": str(self.broker),
                "keyset_digest": keyset_digest,
                "nonce": None if nonce is None else nonce.hex(),
                "purpose": RELEASE_PURPOSE,
                "resource": str(self.resource),
                "version": self.version,
                "wrapping_key": "sha256:" + hashlib.sha256(self.wrapping_key).hexdigest(),
            }
        )

    def digest(self, keyset_digest: str, nonce: bytes | None) -> bytes:
        """SHA-256 of the statement: what the hardware signs. In place of `statement_digest`."""
        return hashlib.sha256(self.statement(keyset_digest, nonce)).digest()


def broker_statement(identity: BrokerIdentity, keyset_digest: str, nonce: bytes | None) -> bytes:
    """The statement by which a broker's own evidence vouches for its identity key."""
    if nonce is not None and len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
    return canonical(
        {
            "broker": str(identity),
            "keyset_digest": keyset_digest,
            "nonce": None if nonce is None else nonce.hex(),
            "purpose": BROKER_PURPOSE,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A secret that a worker opened."""

    secret: bytes = field(repr=False)
    version: int


def seal_release(
    secret: bytes,
    *,
    version: int,
    request: ReleaseRequest,
    statement_digest: bytes,
    identity_key: Ed25519PrivateKey,
    random: Random = os.urandom,
) -> bytes:
    """Seal `secret` for the worker whose evidence binds `statement_digest`; JSON bytes.

    Raises MalformedError when the wrapping key cannot be used.
    """
    header = _header(request.resource, version)
    enc, context = setup_sender(SUITE, request.wrapping_key, _info(statement_digest), random=random)
    ciphertext = context.seal(canonical(header), secret)
    signature = identity_key.sign(_signed(statement_digest, header, enc, ciphertext))
    return canonical(
        {
            **header,
            "enc": _encode(enc),
            "ciphertext": _encode(ciphertext),
            "signature": _encode(signature),
        }
    )


def open_release(
    answer: bytes, *, private_key: PrivateKey, request: ReleaseRequest, statement_digest: bytes
) -> Released:
    """Open a broker's answer to `request`.

    Raises:
        MalformedError: it is no such answer, or about another secret or version.
        AuthenticationError: another broker signed it, or it answers another statement.
        ChannelError: it does not open.
    """
    what = "the broker's answer"
    members = parse_json_object(answer, limit=MAX_ANSWER_BYTES, what=what)
    names = {"purpose", "resource", "version", "enc", "ciphertext", "signature"}
    expect_keys(members, what, required=names)
    version = expect_int(members["version"], "a secret's version", low=1, high=MAX_VERSION)
    header = _header(request.resource, version)
    asked = request.version in (None, version)
    if not asked or {name: members[name] for name in header} != header:
        raise MalformedError(f"{what} is about another secret", code="key_release.answer")
    enc, ciphertext, signature = (
        decode_base64(members[name], limit=MAX_ANSWER_BYTES, what=f"{name} of {what}")
        for name in ("enc", "ciphertext", "signature")
    )
    try:
        Ed25519PublicKey.from_public_bytes(request.broker.public_key).verify(
            signature, _signed(statement_digest, header, enc, ciphertext)
        )
    except (InvalidSignature, ValueError):
        raise AuthenticationError(
            "the key was not released by the broker that this worker was measured for, or not"
            " in answer to what it asked",
            code="key_release.identity",
        ) from None
    context = setup_receiver(SUITE, enc, private_key, _info(statement_digest))
    return Released(secret=context.open(canonical(header), ciphertext), version=version)


def wrapping_jwk(public_key: bytes) -> JsonObject:
    """The wrapping key as a member of RCAR's ``tee-pubkey``; a key type of Cloister's own."""
    return {"kty": "cloister-hpke", "alg": "mlkem768-x25519", "pub": _encode(public_key)}


def parse_wrapping_jwk(value: JsonObject) -> bytes:
    """Read `wrapping_jwk`; MalformedError if it is another kind of key."""
    what = "the wrapping key"
    expect_keys(value, what, required={"kty", "alg", "pub"})
    kind = expect_str(value["kty"], what, limit=32), expect_str(value["alg"], what, limit=32)
    if kind != ("cloister-hpke", "mlkem768-x25519"):
        raise MalformedError("the wrapping key is of another kind", code="key_release.wrapping_key")
    public = decode_base64(value["pub"], limit=WRAPPING_KEY_SIZE, what=what)
    if len(public) != WRAPPING_KEY_SIZE:
        raise MalformedError("the wrapping key is short", code="key_release.wrapping_key")
    return public


def _header(resource: ResourceUri, version: int) -> JsonObject:
    return {"purpose": RELEASE_PURPOSE, "resource": str(resource), "version": version}


def _info(statement_digest: bytes) -> bytes:
    return RELEASE_PURPOSE.encode() + b"\0" + statement_digest


def _signed(statement_digest: bytes, header: JsonObject, enc: bytes, ciphertext: bytes) -> bytes:
    parts = (statement_digest, canonical(header), enc, ciphertext)
    return _SIGNED + b"".join(hashlib.sha256(part).digest() for part in parts)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
