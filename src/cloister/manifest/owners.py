"""Who may sign a manifest: keys, and identities that Sigstore vouches for.

An owner's id is the SHA-256 of the canonical JSON of what identifies them, without their name::

    {"algorithm":"ed25519","public_key":"<base64>"}
    {"algorithm":"ml-dsa-65","public_key":"<base64>"}
    {"algorithm":"sigstore","identity":"…","issuer":"https://…"}

So the same key has the same id in every manifest, whatever it is called there.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    decode_base64,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)

MAX_OWNERS: Final = 32


class KeyAlgorithm(StrEnum):
    """Signature algorithms whose keys a manifest may list."""

    ED25519 = "ed25519"
    """RFC 8032."""
    ML_DSA_65 = "ml-dsa-65"
    """FIPS 204, pure, with an empty context."""


SIGSTORE: Final = "sigstore"
"""In place of an algorithm: an identity, with a certificate that Fulcio issued for a moment."""

PUBLIC_KEY_SIZE: Final = {KeyAlgorithm.ED25519: 32, KeyAlgorithm.ML_DSA_65: 1952}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOwner:
    """An owner who holds a private key."""

    name: str
    """For people; nothing is decided by it."""
    algorithm: KeyAlgorithm
    public_key: bytes = field(repr=False)
    """Raw, of `PUBLIC_KEY_SIZE` bytes."""
    key_id: str = field(init=False, repr=False, compare=False)
    """``sha256:<hex>`` of `identity`."""

    def __post_init__(self) -> None:
        """Compute the id once: chains of manifests ask for it at each link."""
        object.__setattr__(self, "key_id", _key_id(self.identity))

    @property
    def identity(self) -> JsonObject:
        """What identifies this owner."""
        encoded = base64.b64encode(self.public_key).decode("ascii")
        return {"algorithm": self.algorithm.value, "public_key": encoded}

    def describe(self) -> str:
        """For people: name, algorithm, and the beginning of the id."""
        return f"{self.name} ({self.algorithm} {self.key_id[:23]}…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigstoreOwner:
    """An owner who proves an identity to Sigstore's certificate authority when they sign."""

    name: str
    subject: str
    """The certificate's subject alternative name: an address, or the URI of a workflow."""
    issuer: str
    """The OpenID provider that vouched for it."""
    key_id: str = field(init=False, repr=False, compare=False)
    """``sha256:<hex>`` of `identity`."""

    def __post_init__(self) -> None:
        """Compute the id once."""
        object.__setattr__(self, "key_id", _key_id(self.identity))

    @property
    def identity(self) -> JsonObject:
        """What identifies this owner."""
        return {"algorithm": SIGSTORE, "identity": self.subject, "issuer": self.issuer}

    def describe(self) -> str:
        """For people: name, identity and who vouches for it."""
        return f"{self.name} ({self.subject} by {self.issuer})"


Owner: TypeAlias = KeyOwner | SigstoreOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """Those who may sign, and how many of them have to."""

    threshold: int
    listed: tuple[Owner, ...]
    _written: JsonObject = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse owners who could never, or always, reach the threshold. MalformedError."""
        if not 1 <= self.threshold <= len(self.listed):
            raise MalformedError("a manifest needs between one and all of its owners to sign")
        if len({owner.key_id for owner in self.listed}) != len(self.listed):
            raise MalformedError("a manifest lists one owner twice")
        if len({owner.name for owner in self.listed}) != len(self.listed):
            raise MalformedError("two owners of a manifest have the same name")
        # Once: each version of a chain is compared with it.
        object.__setattr__(self, "_written", self.to_json())

    def are_written(self, value: Json) -> bool:
        """Whether `value` is what `to_json` says, so that it need not be parsed."""
        # True equals 1, and is no number in JSON.
        return self._written == value and value["threshold"] is not True

    def to_json(self) -> JsonObject:
        """The member as the manifest writes it."""
        keys: list[Json] = [{"name": owner.name, **owner.identity} for owner in self.listed]
        return {"threshold": self.threshold, "keys": keys}


def parse_owners(value: object) -> Owners:
    """Read a manifest's owners. Raises MalformedError, and nothing else."""
    members = expect_object(value, "owners")
    expect_keys(members, "owners", required={"threshold", "keys"})
    listed = expect_list(members["keys"], "an owner list", limit=MAX_OWNERS)
    return Owners(
        threshold=expect_int(members["threshold"], "a threshold", low=1, high=MAX_OWNERS),
        listed=tuple(parse_owner(entry) for entry in listed),
    )


def parse_owner(value: object) -> Owner:
    """Read one owner. Raises MalformedError, and nothing else."""
    what = "an owner"
    members = expect_object(value, what)
    algorithm = expect_str(members.get("algorithm"), "an owner's algorithm", limit=32)
    if algorithm == SIGSTORE:
        expect_keys(members, what, required={"name", "algorithm", "identity", "issuer"})
        return SigstoreOwner(
            name=text(members["name"], "an owner's name"),
            subject=text(members["identity"], "an identity", limit=512),
            issuer=text(members["issuer"], "an issuer", limit=512),
        )
    expect_keys(members, what, required={"name", "algorithm", "public_key"})
    try:
        known = KeyAlgorithm(algorithm)
    except ValueError:
        raise MalformedError("an owner has a key of an unknown algorithm") from None
    size = PUBLIC_KEY_SIZE[known]
    public_key = decode_base64(members["public_key"], limit=size, what="a public key")
    if len(public_key) != size:
        raise MalformedError(f"a public key of {known} has {size} bytes")
    return KeyOwner(
        name=text(members["name"], "an owner's name"), algorithm=known, public_key=public_key
    )


def text(value: object, what: str, *, limit: int = 256) -> str:
    """Return printable text of 1 to `limit` characters, or raise MalformedError naming `what`."""
    found = expect_str(value, what, limit=limit)
    if not found or not found.isprintable() or found != found.strip():
        raise MalformedError(f"{what} is not printable text")
    return found


def _key_id(identity: JsonObject) -> str:
    return "sha256:" + hashlib.sha256(canonical(identity)).hexdigest()
