"""A store's master key in shares of its owners, and back again.

The master key opens everything in a store (`cloister.broker.master`); the database holds it wrapped
by the root key. A backup is a copy of the database, by its own tools, and the master key in n
shares of which k join (`cloister.broker.shares`), each sealed to its owner's key (HPKE).

All shares of one backup carry the same statement, signed by the broker's identity: store,
threshold, owners by name and key, and a commitment to each share, SHA-256 over 16 random bytes
and the share, which says nothing about it. So a share that was altered, exchanged or made up is
known, by its owner's name, before anything is joined.

To recover, the new machine makes a key of its own; k owners each open their share where their
key is, and seal it to that one (`hand_over`). No machine but the new one ever has two shares.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.broker.master import MASTER_SIZE
from cloister.broker.owner_keys import SUITE, Owner, OwnerKey
from cloister.broker.shares import MAX_SHARES, join, split
from cloister.channel.hpke import setup_receiver, setup_sender
from cloister.channel.key_release import BrokerIdentity
from cloister.errors import AuthenticationError, ChannelError, ConfigurationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

FORMAT: Final = "cloister.broker-shares/1"
MAX_DOCUMENT_BYTES: Final = 128 * 1024
_WHAT: Final = "the share"
_SALT_SIZE: Final = 16
_MAX_TIME: Final = 1 << 40

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What all shares of one backup say."""

    backup: bytes
    """16 random bytes: its name."""
    store_id: str
    identity: BrokerIdentity
    made_at: int
    """Unix time."""
    threshold: int
    owners: tuple[tuple[str, bytes], ...]
    """Name and SHA-256 of the key, in the shares' order."""
    commitments: tuple[bytes, ...]

    def to_json(self) -> JsonObject:
        """What is signed, in canonical form."""
        return {
            "format": FORMAT,
            "backup": self.backup.hex(),
            "store": self.store_id,
            "identity": str(self.identity),
            "made_at": self.made_at,
            "threshold": self.threshold,
            "owners": [{"name": name, "key_sha256": key.hex()} for name, key in self.owners],
            "commitments": [commitment.hex() for commitment in self.commitments],
        }

    @property
    def signed(self) -> bytes:
        """The bytes that the identity signs."""
        return b"cloister.broker.backup.v1\0" + canonical(self.to_json())

    def owner(self, number: int) -> str:
        """The name of the owner of a share."""
        return self.owners[number - 1][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedShare:
    """One share, sealed to its owner, or by its owner to a recovering machine."""

    statement: Statement
    signature: bytes
    number: int
    handed_over: bool
    enc: bytes
    ciphertext: bytes = field(repr=False)

    def encode(self) -> bytes:
        """JSON."""
        return (
            json.dumps(
                {
                    "statement": self.statement.to_json(),
                    "signature": _b64(self.signature),
                    "number": self.number,
                    "handed_over": self.handed_over,
                    "enc": _b64(self.enc),
                    "ciphertext": _b64(self.ciphertext),
                },
                indent=2,
            ).encode()
            + b"\n"
        )

    @classmethod
    def parse(cls, data: bytes) -> SealedShare:
        """Decode and check the identity's signature over the statement.

        Raises:
            MalformedError: it is no share.
            AuthenticationError: the broker that it names did not sign it (``backup.signature``).
        """
        members = parse_json_object(data, limit=MAX_DOCUMENT_BYTES, what=_WHAT)
        names = {"statement", "signature", "number", "handed_over", "enc", "ciphertext"}
        expect_keys(members, _WHAT, required=names)
        statement = _parse_statement(expect_object(members["statement"], _WHAT))
        handed_over = members["handed_over"]
        if not isinstance(handed_over, bool):
            raise MalformedError(f"{_WHAT} does not say to whom it is sealed")
        share = cls(
            statement=statement,
            signature=decode_base64(members["signature"], limit=64, what=_WHAT),
            number=expect_int(members["number"], _WHAT, low=1, high=len(statement.owners)),
            handed_over=handed_over,
            enc=decode_base64(members["enc"], limit=SUITE.kem.enc_size, what=_WHAT),
            ciphertext=decode_base64(members["ciphertext"], limit=256, what=_WHAT),
        )
        try:
            identity = Ed25519PublicKey.from_public_bytes(statement.identity.public_key)
            identity.verify(share.signature, statement.signed)
        except (InvalidSignature, ValueError):
            raise AuthenticationError(
                "the share was altered, or made by somebody else than the broker that it names",
                code="backup.signature",
            ) from None
        return share


def make_backup(
    master: bytes,
    *,
    store_id: str,
    identity_key: Ed25519PrivateKey,
    owners: Sequence[Owner],
    threshold: int,
    now: int,
    random: Random = os.urandom,
) -> tuple[SealedShare, ...]:
    """Shares of `master` for `owners`, `threshold` of whom can recover.

    ConfigurationError (``backup.owners``): one owner alone could, or is named twice, or so on.
    """
    _check_owners(owners, threshold)
    shares = split(master, shares=len(owners), threshold=threshold, random=random)
    salted = {number: random(_SALT_SIZE) + share for number, share in shares.items()}
    backup = random(16)
    statement = Statement(
        backup=backup,
        store_id=store_id,
        identity=BrokerIdentity(identity_key.public_key().public_bytes_raw()),
        made_at=now,
        threshold=threshold,
        owners=tuple((owner.name, bytes.fromhex(owner.fingerprint)) for owner in owners),
        commitments=tuple(_commitment(backup, number, salted[number]) for number in sorted(salted)),
    )
    signature = identity_key.sign(statement.signed)
    return tuple(
        _seal(statement, signature, number, salted[number], owner.public_key, random=random)
        for number, owner in enumerate(owners, start=1)
    )


def hand_over(
    share: SealedShare, key: OwnerKey, to: Owner, *, random: Random = os.urandom
) -> SealedShare:
    """An owner's share, sealed anew to a recovering machine's key.

    Raises:
        ConfigurationError: it is another owner's, or was handed over (``backup.owner``).
        AuthenticationError: it was altered (``backup.share``).
    """
    if share.handed_over:
        raise ConfigurationError("this share was handed over already", code="backup.owner")
    if bytes.fromhex(key.owner.fingerprint) != share.statement.owners[share.number - 1][1]:
        raise ConfigurationError(
            f"this is the share of {share.statement.owner(share.number)}, and another's key",
            code="backup.owner",
        )
    salted = _open(share, key)
    return _seal(
        share.statement,
        share.signature,
        share.number,
        salted,
        to.public_key,
        handed_over=True,
        random=random,
    )


def recover(
    shares: Sequence[SealedShare], key: OwnerKey, *, identity: BrokerIdentity, store_id: str
) -> bytes:
    """The master key of the store, from shares handed over to `key`.

    Raises:
        ConfigurationError: too few shares, or of several backups, or of another store or broker.
        AuthenticationError: a share was altered, or is sealed to another key (``backup.share``),
            with its owner's name.
    """
    statements = {share.statement.signed for share in shares}
    if len(statements) != 1:
        raise _unusable("the shares are not all of one backup")
    statement = shares[0].statement
    if statement.identity != identity or statement.store_id != store_id:
        raise _unusable("the shares are of another broker's store")
    found: dict[int, bytes] = {}
    for share in shares:
        if not share.handed_over:
            raise _unusable(
                f"the share of {statement.owner(share.number)} was not handed over to this machine"
            )
        found[share.number] = _open(share, key)[_SALT_SIZE:]
    if len(found) < statement.threshold:
        raise _unusable(
            f"it takes shares of {statement.threshold} owners, and there are {len(found)}"
        )
    return join(found)


def _seal(
    statement: Statement,
    signature: bytes,
    number: int,
    salted: bytes,
    public_key: bytes,
    *,
    handed_over: bool = False,
    random: Random,
) -> SealedShare:
    info = _info(statement, handed_over=handed_over)
    enc, context = setup_sender(SUITE, public_key, info, random=random)
    return SealedShare(
        statement=statement,
        signature=signature,
        number=number,
        handed_over=handed_over,
        enc=enc,
        ciphertext=context.seal(bytes([number]), salted),
    )


def _open(share: SealedShare, key: OwnerKey) -> bytes:
    """Salt and share, as the statement commits to them."""
    info = _info(share.statement, handed_over=share.handed_over)
    try:
        context = setup_receiver(SUITE, share.enc, key.private_key, info)
        salted = context.open(bytes([share.number]), share.ciphertext)
    except ChannelError:
        salted = b""
    committed = share.statement.commitments[share.number - 1]
    found = _commitment(share.statement.backup, share.number, salted)
    if len(salted) != _SALT_SIZE + MASTER_SIZE or not hmac.compare_digest(found, committed):
        raise AuthenticationError(
            f"the share of {share.statement.owner(share.number)} was altered, or is sealed to"
            " another key",
            code="backup.share",
        )
    return salted


def _info(statement: Statement, *, handed_over: bool) -> bytes:
    use = b"handover" if handed_over else b"owner"
    return b"cloister.broker.share.v1\0" + use + b"\0" + hashlib.sha256(statement.signed).digest()


def _commitment(backup: bytes, number: int, salted: bytes) -> bytes:
    return hashlib.sha256(
        b"cloister.broker.commitment.v1\0" + backup + bytes([number]) + salted
    ).digest()


def _check_owners(owners: Sequence[Owner], threshold: int) -> None:
    keys = {owner.public_key for owner in owners}
    if len(keys) != len(owners) or len({owner.name for owner in owners}) != len(owners):
        raise _owners("an owner is named twice, or two have one key")
    if not 2 <= threshold <= len(owners) <= MAX_SHARES:
        raise _owners(
            "the threshold is from 2 (or one owner alone could take everything) to the number of"
            " owners"
        )


def _parse_statement(members: JsonObject) -> Statement:
    names = {"format", "backup", "store", "identity", "made_at", "threshold", "owners"}
    expect_keys(members, _WHAT, required=names | {"commitments"})
    if members["format"] != FORMAT:
        raise MalformedError(f"{_WHAT} is of another format")
    owners = tuple(
        _parse_owner(expect_object(entry, _WHAT))
        for entry in expect_list(members["owners"], _WHAT, limit=MAX_SHARES)
    )
    commitments = tuple(
        expect_hex(entry, _WHAT, size=32)
        for entry in expect_list(members["commitments"], _WHAT, limit=MAX_SHARES)
    )
    if not owners or len(owners) != len(commitments):
        raise MalformedError(f"{_WHAT} does not commit to a share for each owner")
    return Statement(
        backup=expect_hex(members["backup"], _WHAT, size=16),
        store_id=expect_str(members["store"], _WHAT, limit=64),
        identity=BrokerIdentity.parse(expect_str(members["identity"], _WHAT, limit=128)),
        made_at=expect_int(members["made_at"], _WHAT, high=_MAX_TIME),
        threshold=expect_int(members["threshold"], _WHAT, low=2, high=len(owners)),
        owners=owners,
        commitments=commitments,
    )


def _parse_owner(members: JsonObject) -> tuple[str, bytes]:
    expect_keys(members, _WHAT, required={"name", "key_sha256"})
    name = expect_str(members["name"], _WHAT, limit=64)
    if not name.isprintable():
        raise MalformedError(f"{_WHAT} names nobody")
    return name, expect_hex(members["key_sha256"], _WHAT, size=32)


def _unusable(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="backup.shares")


def _owners(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="backup.owners")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
