"""Signs manifests, and puts an update behind the version before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cloister.errors import AuthenticationError, ConfigurationError
from cloister.manifest.bundle import Link, SignedManifest, join
from cloister.manifest.dsse import Envelope, Signature
from cloister.manifest.model import PAYLOAD_TYPE, Manifest
from cloister.manifest.owners import KeyAlgorithm, KeyOwner

PrivateKey: TypeAlias = Ed25519PrivateKey | MLDSA65PrivateKey


class Signer(Protocol):
    """Whoever can sign for one owner: a key in a file, or in a device."""

    @property
    def key_id(self) -> str:
        """The owner's id (`cloister.manifest.owners`)."""

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySigner:
    """Signs with a private key in memory."""

    owner: KeyOwner
    private_key: PrivateKey = field(repr=False)

    @classmethod
    def of(cls, name: str, private_key: PrivateKey) -> KeySigner:
        """The signer, and so the owner, that a key makes."""
        return cls(owner=owner_of(name, private_key.public_key()), private_key=private_key)

    @property
    def key_id(self) -> str:
        """The owner's id."""
        return self.owner.key_id

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        return self.private_key.sign(data)


def owner_of(name: str, public_key: Ed25519PublicKey | MLDSA65PublicKey) -> KeyOwner:
    """The owner who holds the private key to `public_key`."""
    ed25519 = isinstance(public_key, Ed25519PublicKey)
    return KeyOwner(
        name=name,
        algorithm=KeyAlgorithm.ED25519 if ed25519 else KeyAlgorithm.ML_DSA_65,
        public_key=public_key.public_bytes(Encoding.Raw, PublicFormat.Raw),
    )


def generate_pem(algorithm: str, *, password: bytes | None = None) -> tuple[bytes, bytes]:
    """A fresh key as PEM: the private one (PKCS #8, encrypted if there is a password), the public.

    Raises:
        ConfigurationError: no algorithm of that name (code ``manifest.key``).
    """
    try:
        known = KeyAlgorithm(algorithm)
    except ValueError:
        raise _not_a_key(f"cannot be of {algorithm}: take {' or '.join(KeyAlgorithm)}") from None
    key: PrivateKey = (
        Ed25519PrivateKey.generate()
        if known is KeyAlgorithm.ED25519
        else MLDSA65PrivateKey.generate()
    )
    protection = NoEncryption() if password is None else BestAvailableEncryption(password)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def load_private_key(pem: bytes, *, password: bytes | None = None) -> PrivateKey:
    """Read a private key from PEM (PKCS #8).

    Raises:
        ConfigurationError: not a key that can sign manifests (code ``manifest.key``).
    """
    try:
        key = load_pem_private_key(pem, password=password)
    except TypeError:
        raise _not_a_key("is encrypted: its password is needed, and only then") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key("cannot be read as PEM, or its password is wrong") from None
    if not isinstance(key, Ed25519PrivateKey | MLDSA65PrivateKey):
        raise _not_a_key("is neither Ed25519 nor ML-DSA-65")
    return key


def load_owner(name: str, pem: bytes) -> KeyOwner:
    """Read an owner's public key from PEM (SubjectPublicKeyInfo). Errors as above."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key("cannot be read as a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey | MLDSA65PublicKey):
        raise _not_a_key("is neither Ed25519 nor ML-DSA-65")
    return owner_of(name, key)


def envelope_of(manifest: Manifest, *signers: Signer) -> Envelope:
    """`manifest` in an envelope, signed by each of `signers`."""
    envelope = Envelope(payload_type=PAYLOAD_TYPE, payload=manifest.encode())
    for signer in signers:
        envelope = add_signature(envelope, signer)
    return envelope


def add_signature(envelope: Envelope, signer: Signer) -> Envelope:
    """`envelope` with a signature by `signer`, in place of an earlier one of theirs."""
    made = Signature(key_id=signer.key_id, data=signer.sign(envelope.signed_bytes))
    return with_signature(envelope, made)


def with_signature(envelope: Envelope, made: Signature) -> Envelope:
    """`envelope` with `made`, in place of an earlier one by the same owner."""
    others = tuple(one for one in envelope.signatures if one.key_id != made.key_id)
    return dataclasses.replace(envelope, signatures=(*others, made))


def first_version(envelope: Envelope) -> SignedManifest:
    """The bundle of a manifest's first version. Raises MalformedError."""
    return join((Link.of(envelope),))


def updated(signed: SignedManifest, envelope: Envelope) -> SignedManifest:
    """`signed` with the next version behind it. Whether it is signed well is not checked.

    Raises:
        AuthenticationError: it is not the version after the one in force, because somebody else
            was first (code ``manifest.conflict``).
        MalformedError: it is no manifest.
    """
    made = Link.of(envelope)
    header = made.header
    if header.version <= signed.version or header.previous != signed.digest:
        raise AuthenticationError(
            f"this is version {header.version}, made from version {header.version - 1}"
            f" ({(header.previous or 'none')[:16]}…), but version {signed.version}"
            f" ({signed.digest[:16]}…) is in force: somebody else updated the manifest. Look at"
            " what they changed, and make yours again from theirs",
            code="manifest.conflict",
        )
    return join((*signed.links, made))


def _not_a_key(why: str) -> ConfigurationError:
    return ConfigurationError(f"the key {why}", code="manifest.key")
