"""The audit log: what was decided, when and why, each entry holding the digest of the one before.

An entry is canonical JSON (RFC 8785)::

    {"at": 1796000000, "detail": {…}, "event": "released", "previous": "<hex>", "sequence": 7}

Its digest is SHA-256 of these bytes, and the next entry's ``previous``. Entries hold names,
digests, versions, codes and sentences; never a secret, a token or evidence.

An export ends with a checkpoint that the broker signs: the last sequence number and digest. The
chain shows that nothing inside it was changed, added or removed; that nothing was cut off its end
shows only who keeps an earlier checkpoint (`verify_export`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.channel.key_release import BrokerIdentity
from cloister.errors import AuthenticationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_hex,
    expect_int,
    expect_keys,
    expect_object,
    expect_str,
    parse_json_object,
)

FIRST_PREVIOUS: Final = bytes(32)
MAX_ENTRY_BYTES: Final = 16 * 1024
_MAX_EVENT: Final = 64
_SIGNED: Final = b"cloister.audit.checkpoint.v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a log goes."""

    sequence: int
    digest: bytes

    def to_json(self) -> JsonObject:
        """As checkpoints write it."""
        return {"sequence": self.sequence, "digest": self.digest.hex()}

    def after(self, entry: bytes) -> Head:
        """How far it goes with `entry`, which was made to follow this."""
        return Head(sequence=self.sequence + 1, digest=hashlib.sha256(entry).digest())


NOTHING: Final = Head(sequence=0, digest=FIRST_PREVIOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decoded entry."""

    sequence: int
    at: int
    event: str
    detail: JsonObject
    previous: bytes


def encode_entry(after: Head, *, at: int, event: str, detail: JsonObject) -> bytes:
    """The bytes of the entry that follows `after`; MalformedError if `follow` would refuse it."""
    entry = canonical(
        {
            "sequence": after.sequence + 1,
            "at": at,
            "event": event,
            "detail": detail,
            "previous": after.digest.hex(),
        }
    )
    if len(entry) > MAX_ENTRY_BYTES or len(event) > _MAX_EVENT:
        raise MalformedError("an entry of the audit log is larger than its readers accept")
    return entry


def follow(head: Head, entry: bytes) -> tuple[Head, Entry]:
    """Check that `entry` follows `head`; return the new head and the decoded entry.

    Raises MalformedError, or AuthenticationError (``audit.chain``) where the chain breaks.
    """
    what = "an entry of the audit log"
    members = parse_json_object(entry, limit=MAX_ENTRY_BYTES, what=what)
    expect_keys(members, what, required={"sequence", "at", "event", "detail", "previous"})
    read = Entry(
        sequence=expect_int(members["sequence"], "an entry's number"),
        at=expect_int(members["at"], "an entry's time"),
        event=expect_str(members["event"], "an entry's event", limit=_MAX_EVENT),
        detail=expect_object(members["detail"], "an entry's detail"),
        previous=expect_hex(members["previous"], "an entry's predecessor", size=32),
    )
    if read.sequence != head.sequence + 1 or read.previous != head.digest:
        raise AuthenticationError(
            f"the audit log is broken after entry {head.sequence}: what follows was changed,"
            " added or removed",
            code="audit.chain",
        )
    return head.after(entry), read


def follow_all(entries: Iterable[bytes], start: Head = NOTHING) -> Head:
    """Check a whole chain; raises as `follow`."""
    head = start
    for entry in entries:
        head, _ = follow(head, entry)
    return head


def encode_checkpoint(head: Head, identity_key: Ed25519PrivateKey) -> bytes:
    """The signed last line of an export."""
    signature = identity_key.sign(_SIGNED + canonical(head.to_json()))
    return canonical(
        {"checkpoint": head.to_json(), "signature": base64.b64encode(signature).decode("ascii")}
    )


def parse_checkpoint(line: bytes, identity: BrokerIdentity) -> Head:
    """Read and authenticate a checkpoint of this broker; MalformedError, AuthenticationError."""
    what = "the audit log's checkpoint"
    members = parse_json_object(line, limit=MAX_ENTRY_BYTES, what=what)
    expect_keys(members, what, required={"checkpoint", "signature"})
    inner = expect_object(members["checkpoint"], what)
    expect_keys(inner, what, required={"sequence", "digest"})
    head = Head(
        sequence=expect_int(inner["sequence"], what),
        digest=expect_hex(inner["digest"], what, size=32),
    )
    signature = decode_base64(members["signature"], limit=64, what=what)
    try:
        Ed25519PublicKey.from_public_bytes(identity.public_key).verify(
            signature, _SIGNED + canonical(head.to_json())
        )
    except (InvalidSignature, ValueError):
        raise AuthenticationError(
            "the audit log's checkpoint was not signed by this broker", code="audit.checkpoint"
        ) from None
    return head


def export_lines(entries: Iterable[bytes], identity_key: Ed25519PrivateKey) -> Iterator[bytes]:
    """The lines of an export, without their ends; the chain is checked on the way."""
    head = NOTHING
    for entry in entries:
        head, _ = follow(head, entry)
        yield entry
    yield encode_checkpoint(head, identity_key)


def verify_export(
    lines: Iterable[bytes], identity: BrokerIdentity, *, earlier: Head | None = None
) -> Head:
    """Check an export of the broker `identity`, and that it goes on from an `earlier` checkpoint.

    Raises:
        MalformedError: it does not decode, or has no checkpoint.
        AuthenticationError: the chain is broken (``audit.chain``), the checkpoint is not the
            broker's or not that of these entries (``audit.checkpoint``), or what `earlier`
            covered is not in it (``audit.rolled_back``).
    """
    head, met, checkpoint = NOTHING, earlier in (None, NOTHING), None
    for line in lines:
        if checkpoint is not None:
            raise MalformedError("the audit log goes on after its checkpoint")
        if line.startswith(b'{"checkpoint":'):
            checkpoint = parse_checkpoint(line, identity)
            continue
        head, _ = follow(head, line)
        met = met or head == earlier
    if checkpoint is None:
        raise MalformedError("the audit log has no checkpoint: it was cut off")
    if checkpoint != head:
        raise AuthenticationError(
            "the audit log's checkpoint is not that of its entries", code="audit.checkpoint"
        )
    if not met:
        raise AuthenticationError(
            "the audit log does not hold what an earlier checkpoint covered: it was rolled back"
            " or rewritten",
            code="audit.rolled_back",
        )
    return head


def show(entry: bytes) -> str:
    """One line for people; ASCII, for details may repeat what a requester wrote."""
    members = json.loads(entry)
    detail = json.dumps(members["detail"], sort_keys=True)
    return f"{members['sequence']} {members['at']} {members['event']} {detail}"
