"""Keys of the owners who keep a broker's shares: to which a share is sealed, and that open it.

HPKE's hybrid KEM (ML-KEM-768 and X25519), as for everything that is sealed in Cloister. Two small
JSON documents: one that an owner gives away, one that stays with them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cloister.channel.hpke import Aead, Kdf, Kem, PrivateKey, Suite
from cloister.errors import MalformedError
from cloister.strictjson import decode_base64, expect_keys, expect_str, parse_json_object

SUITE: Final = Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
PUBLIC_FORMAT: Final = "cloister.owner/1"
PRIVATE_FORMAT: Final = "cloister.owner-key/1"
MAX_FILE_BYTES: Final = 8192
_SEED_SIZE: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who keeps a share."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise MalformedError("an owner's name has 1 to 64 letters, digits, spaces and ._@-")
        if len(self.public_key) != SUITE.kem.public_size:
            raise MalformedError("an owner's key is of another kind")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, in hex: what owners read to each other."""
        return hashlib.sha256(self.public_key).hexdigest()

    def encode(self) -> bytes:
        """What an owner gives away."""
        return _document(PUBLIC_FORMAT, self.name, public_key=self.public_key)

    @classmethod
    def parse(cls, data: bytes) -> Owner:
        """Read it. Raises MalformedError."""
        name, key = _parse(data, PUBLIC_FORMAT, "public_key", "the owner's key")
        return cls(name=name, public_key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerKey:
    """What an owner keeps to themselves."""

    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str, *, random: Callable[[int], bytes] = os.urandom) -> OwnerKey:
        """A new key; MalformedError for a name that is none."""
        made = cls(name=name, seed=random(_SEED_SIZE))
        _ = made.owner
        return made

    @property
    def private_key(self) -> PrivateKey:
        """For HPKE."""
        return PrivateKey(SUITE.kem, self.seed)

    @property
    def owner(self) -> Owner:
        """What is given away."""
        return Owner(name=self.name, public_key=self.private_key.public_bytes)

    def encode(self) -> bytes:
        """What is kept."""
        return _document(PRIVATE_FORMAT, self.name, seed=self.seed)

    @classmethod
    def parse(cls, data: bytes) -> OwnerKey:
        """Read it. Raises MalformedError, which repeats nothing."""
        name, seed = _parse(data, PRIVATE_FORMAT, "seed", "the owner's private key")
        if len(seed) != _SEED_SIZE:
            raise MalformedError("the owner's private key is of another kind")
        return cls(name=name, seed=seed)


def _document(form: str, name: str, **key: bytes) -> bytes:
    members = {"format": form, "name": name}
    members |= {member: base64.b64encode(value).decode("ascii") for member, value in key.items()}
    return json.dumps(members, indent=2).encode() + b"\n"


def _parse(data: bytes, form: str, member: str, what: str) -> tuple[str, bytes]:
    members = parse_json_object(data, limit=MAX_FILE_BYTES, what=what)
    expect_keys(members, what, required={"format", "name", member})
    if members["format"] != form:
        raise MalformedError(f"{what} is of another format")
    name = expect_str(members["name"], what, limit=64)
    return name, decode_base64(members[member], limit=MAX_FILE_BYTES, what=what)
