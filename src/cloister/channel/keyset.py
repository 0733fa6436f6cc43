"""The workload keyset of `aci/1` section 3.1: a worker's identity.

A worker lists its public keys in one document; the digest of the document's canonical form
is what hardware evidence binds (`cloister.channel.statement`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)

MAX_KEYS = 16
"""Keys accepted per role; a worker has one or two, during a rotation."""

OHTTP_ALGORITHM = "ohttp"
"""``algo`` of a request key: ``public_key`` is the hex of an RFC 9458 key configuration."""

RECEIPT_ALGORITHM = "ed25519"

CLAIMS_SUBJECT_PREFIX = "cloister:sha256:"
"""A keyset's ``subject`` is this and the hex digest of the claims document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeyEntry:
    """A receipt-signing or request key. Entries of unknown ``algo`` are kept and ignored."""

    key_id: str
    algo: str
    public_key: str
    """Hex for ``ed25519`` (32 bytes) and ``ohttp``; whatever an unknown ``algo`` says otherwise."""

    def to_json(self) -> JsonObject:
        """The entry as `aci/1` writes it."""
        return {"algo": self.algo, "key_id": self.key_id, "public_key": self.public_key}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsKeyEntry:
    """A TLS key the worker holds, by the SHA-256 of its SubjectPublicKeyInfo."""

    spki_sha256: bytes
    domain: str | None = None

    def to_json(self) -> JsonObject:
        """The entry as `aci/1` writes it; ``domain`` only where there is one."""
        entry: JsonObject = {"spki_sha256": self.spki_sha256.hex()}
        if self.domain is not None:
            entry["domain"] = self.domain
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyset:
    """A worker's public keys, with the name and the expiry they are attested with."""

    subject: str | None
    not_after: int
    """Unix time in seconds after which nothing of this keyset is accepted."""
    receipt_signing_keys: tuple[PublicKeyEntry, ...]
    e2ee_public_keys: tuple[PublicKeyEntry, ...]
    tls_public_keys: tuple[TlsKeyEntry, ...] = field(default=())
    _digest: str = field(default="", init=False, repr=False, compare=False)

    def to_json(self) -> JsonObject:
        """The keyset as `aci/1` writes it."""
        receipt: list[Json] = [entry.to_json() for entry in self.receipt_signing_keys]
        e2ee: list[Json] = [entry.to_json() for entry in self.e2ee_public_keys]
        tls: list[Json] = [entry.to_json() for entry in self.tls_public_keys]
        return {
            "e2ee_public_keys": e2ee,
            "not_after": self.not_after,
            "receipt_signing_keys": receipt,
            "subject": self.subject,
            "tls_public_keys": tls,
        }

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over the canonical form: the worker's identity."""
        digest = self._digest
        if not digest:  # computed once: every receipt is compared with it
            digest = "sha256:" + hashlib.sha256(canonical(self.to_json())).hexdigest()
            object.__setattr__(self, "_digest", digest)
        return digest

    @property
    def claims_digest(self) -> bytes | None:
        """The claims document's SHA-256 from ``subject``, or ``None`` if it names none."""
        if self.subject is None or not self.subject.startswith(CLAIMS_SUBJECT_PREFIX):
            return None
        return expect_hex(
            self.subject.removeprefix(CLAIMS_SUBJECT_PREFIX), "the keyset's subject", size=32
        )

    def ohttp_key_configs(self) -> tuple[bytes, ...]:
        """The RFC 9458 key configurations listed for requests, in the worker's order."""
        return tuple(
            expect_hex(entry.public_key, "an ohttp public_key")
            for entry in self.e2ee_public_keys
            if entry.algo == OHTTP_ALGORITHM
        )

    def receipt_key(self, key_id: str) -> bytes | None:
        """The 32-byte Ed25519 key named `key_id`, or ``None`` if the keyset has none."""
        for entry in self.receipt_signing_keys:
            if entry.key_id == key_id and entry.algo == RECEIPT_ALGORITHM:
                return expect_hex(entry.public_key, "a receipt public_key", size=32)
        return None


def parse_keyset(value: object) -> Keyset:
    """Read a keyset from decoded JSON (`cloister.strictjson.parse_json`).

    Its members are exactly those of `aci/1`, whose Appendix B fixes the shape. Key ids must
    be unique across both roles, and no public key may serve two of them (section 3.1).

    Raises:
        MalformedError: the value is not such a keyset.
    """
    members = expect_object(value, "the keyset")
    expect_keys(
        members,
        "the keyset",
        required={
            "e2ee_public_keys",
            "not_after",
            "receipt_signing_keys",
            "subject",
            "tls_public_keys",
        },
    )
    subject = members["subject"]
    keyset = Keyset(
        subject=None if subject is None else expect_str(subject, "the keyset's subject"),
        not_after=expect_int(members["not_after"], "the keyset's not_after"),
        receipt_signing_keys=_entries(members["receipt_signing_keys"], "receipt_signing_keys"),
        e2ee_public_keys=_entries(members["e2ee_public_keys"], "e2ee_public_keys"),
        tls_public_keys=_tls_entries(members["tls_public_keys"]),
    )
    if keyset.to_json() != members:
        # The digest is over what was sent, so a record that reads back otherwise is refused.
        raise MalformedError("the keyset does not read back as it was written")
    _check_roles(keyset)
    return keyset


def _entries(value: object, what: str) -> tuple[PublicKeyEntry, ...]:
    return tuple(_entry(entry, what) for entry in expect_list(value, what, limit=MAX_KEYS))


def _entry(value: object, what: str) -> PublicKeyEntry:
    members = expect_object(value, f"an entry of {what}")
    expect_keys(members, f"an entry of {what}", required={"algo", "key_id", "public_key"})
    return PublicKeyEntry(
        key_id=expect_str(members["key_id"], "a key_id", limit=128),
        algo=expect_str(members["algo"], "an algo", limit=128),
        public_key=expect_str(members["public_key"], "a public_key", limit=65536),
    )


def _tls_entries(value: object) -> tuple[TlsKeyEntry, ...]:
    entries = []
    for entry in expect_list(value, "tls_public_keys", limit=MAX_KEYS):
        members = expect_object(entry, "an entry of tls_public_keys")
        expect_keys(
            members, "an entry of tls_public_keys", required={"spki_sha256"}, optional={"domain"}
        )
        domain = members.get("domain")
        entries.append(
            TlsKeyEntry(
                spki_sha256=expect_hex(members["spki_sha256"], "a spki_sha256", size=32),
                domain=None if domain is None else expect_str(domain, "a domain", limit=255),
            )
        )
    return tuple(entries)


def _check_roles(keyset: Keyset) -> None:
    entries = keyset.receipt_signing_keys + keyset.e2ee_public_keys
    if len({entry.key_id for entry in entries}) != len(entries):
        raise MalformedError("the keyset names two keys alike")
    if len({entry.public_key for entry in entries}) != len(entries):
        raise MalformedError("the keyset uses one key twice")
