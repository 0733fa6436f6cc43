"""The broker's store: secrets, their versions and policies, revocations.

Every change and its audit entry are one transaction. Secrets are sealed before they come near the
database (`cloister.broker.master`); nothing in an audit entry is secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from cloister.broker import tables
from cloister.broker.audit import NOTHING, encode_entry
from cloister.broker.database import Change, Database, no_store
from cloister.broker.master import (
    IDENTITY_PLACE,
    MASTER_SIZE,
    MasterKey,
    master_context,
    policy_place,
    secret_place,
)
from cloister.broker.policy import ResourcePolicy, load_json
from cloister.broker.root_keys.protocol import RootKey
from cloister.broker.statements import Connection, Prepared, Row
from cloister.broker.store_row import StoreRow, read_row
from cloister.channel.key_release import MAX_SECRET_BYTES, BrokerIdentity
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import AuthenticationError, ConfigurationError, FetchError

MAX_OVERLAP_S: Final = 10 * 366 * 24 * 3600
_REVOKED: Final = re.compile(r"(sha256:)?[0-9a-f]{16,128}")

_RESOURCE: Final = Prepared(
    select(tables.resources).where(tables.resources.c.uri == bindparam("of_uri"))
)
_STANDING: Final = Prepared(
    select(
        tables.store.c.rules,
        tables.sessions.c.expires.label("answered"),
        tables.resources.c.uri,
        tables.resources.c.current,
        tables.resources.c.policy,
    )
    .select_from(tables.store)
    .outerjoin(tables.sessions, tables.sessions.c.nonce == bindparam("of_nonce"))
    .outerjoin(tables.resources, tables.resources.c.uri == bindparam("of_uri"))
)
_VERSION: Final = Prepared(
    select(tables.versions).where(
        tables.versions.c.uri == bindparam("of_uri"),
        tables.versions.c.version == bindparam("of_version"),
    )
)
_RULES: Final = Prepared(select(tables.store.c.rules))
_REVOCATIONS: Final = Prepared(select(tables.revocations))

Clock = Callable[[], float]
Random = Callable[[int], bytes]


class Revoked(StrEnum):
    """What may be revoked."""

    MANIFEST = "manifest"
    """``sha256:`` and the digest of a manifest, or of one of its signers."""
    PLATFORM = "platform"
    """A processor's id in hex (AMD CHIP_ID, Intel PPID), or ``sha256:`` and a certificate's
    digest."""
    WORKER = "worker"
    """``sha256:`` and the digest of a keyset, or of anything that is measured into workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A secret without what is secret about it."""

    uri: ResourceUri
    current: int
    policy: ResourcePolicy | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an answer to a challenge meets."""

    rules: int
    """As `Store.rules`."""
    answered: bool
    """Whether the challenge was answered before."""
    resource: Resource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a secret, sealed."""

    number: int
    sealed: bytes = field(repr=False)
    created: int
    not_after: int | None


class Store:
    """One broker's state. For several threads."""

    def __init__(
        self,
        database: Database,
        master: MasterKey,
        identity_key: Ed25519PrivateKey,
        *,
        now: Clock,
        random: Random,
    ) -> None:
        """Not for callers: `create` or `open`."""
        self.database = database
        self.master = master
        self.identity_key = identity_key
        self.identity = BrokerIdentity(identity_key.public_key().public_bytes_raw())
        self.now = now
        self._random = random
        self._opened = lru_cache(maxsize=64)(self._open_policy)

    def __repr__(self) -> str:
        return f"<Store of {self.identity}>"

    @classmethod
    def create(
        cls, database: Database, root: RootKey, *, now: Clock, random: Random = os.urandom
    ) -> Store:
        """Make a store with a new identity in an empty database.

        ConfigurationError (``broker.exists``) if there is one; FetchError if the database fails.
        """
        store_id, master, seed = random(16).hex(), random(MASTER_SIZE), random(32)
        identity_key = Ed25519PrivateKey.from_private_bytes(seed)
        identity = BrokerIdentity(identity_key.public_key().public_bytes_raw())
        keys = MasterKey(master)
        at = int(now())
        entry = encode_entry(
            NOTHING,
            at=at,
            event="store.created",
            detail={"store": store_id, "identity": str(identity), "root_key": root.name},
        )
        head = NOTHING.after(entry)
        try:
            with database.engine.begin() as connection:
                tables.metadata.create_all(connection)
                if connection.execute(select(tables.store.c.id)).first() is not None:
                    raise ConfigurationError(
                        "there is a store in this database already", code="broker.exists"
                    )
                connection.execute(
                    insert(tables.store).values(
                        id=1,
                        format=tables.FORMAT,
                        store_id=store_id,
                        root_name=root.name,
                        wrapped_master=root.wrap(master, master_context(store_id)),
                        identity=identity.public_key,
                        sealed_identity_key=keys.seal(seed, IDENTITY_PLACE, random=random),
                        sequence=head.sequence,
                        digest=head.digest,
                        at=at,
                        rules=head.sequence,
                    )
                )
                connection.execute(
                    insert(tables.audit).values(
                        sequence=head.sequence, entry=entry, digest=head.digest
                    )
                )
        except SQLAlchemyError as error:
            raise FetchError(
                f"the store cannot be made in this database ({type(error).__name__})",
                code="broker.database",
            ) from None
        return cls(database, keys, identity_key, now=now, random=random)

    @classmethod
    def open(
        cls, database: Database, root: RootKey, *, now: Clock, random: Random = os.urandom
    ) -> Store:
        """Open a store with its root key.

        Raises:
            ConfigurationError: there is none (``broker.no_store``), it is of another format, or
                the root key is another one's.
            AuthenticationError: the database was altered (``broker.store``).
            FetchError: the database or the root key cannot be reached.
        """
        master, row = cls.unwrap_master(database, root)
        keys = MasterKey(master)
        identity_key = keys.identity_key(row.sealed_identity_key)
        return cls(database, keys, identity_key, now=now, random=random)

    @classmethod
    def recovered(
        cls, database: Database, master: bytes, *, now: Clock, random: Random = os.urandom
    ) -> Store:
        """Open a store by its master key itself, which its owners' shares gave back.

        AuthenticationError (``broker.store``) if it is another store's, or the database was
        altered: then the key does not open this identity.
        """
        keys = MasterKey(master)
        row = read_row(database)
        identity_key = keys.identity_key(row.sealed_identity_key)
        if identity_key.public_key().public_bytes_raw() != row.identity.public_key:
            raise AuthenticationError(
                "the store names another identity than the one in it", code="broker.store"
            )
        return cls(database, keys, identity_key, now=now, random=random)

    @staticmethod
    def unwrap_master(database: Database, root: RootKey) -> tuple[bytes, StoreRow]:
        """The master key itself, for shares and for a new root key. Raises as `open`."""
        row = read_row(database)
        return root.unwrap(row.wrapped_master, master_context(row.store_id)), row

    def put(self, uri: ResourceUri, secret: bytes) -> int:
        """Store a new secret; returns its version, 1. Nobody gets it before it has a policy.

        ConfigurationError: it exists (``broker.secret_exists``), or is empty or too large.
        """
        _check_secret(secret)
        with self.changing() as change:
            if self._current(change.connection, uri) is not None:
                raise ConfigurationError(
                    f"{uri} exists; `cloister broker rotate` gives it a new version",
                    code="broker.secret_exists",
                )
            change.connection.run(
                insert(tables.resources).values(
                    uri=str(uri), current=1, policy=None, created=change.at
                )
            )
            self._add_version(change, uri, 1, secret)
            change.record("secret.put", {"resource": str(uri), "version": 1})
        return 1

    def rotate(self, uri: ResourceUri, secret: bytes, *, overlap_s: int) -> int:
        """Give a secret a new version; the one before is released `overlap_s` seconds longer.

        ConfigurationError: there is no such secret (``broker.secret_unknown``), or the overlap
        or the secret's size is out of range.
        """
        _check_secret(secret)
        if not 0 <= overlap_s <= MAX_OVERLAP_S:
            raise ConfigurationError(
                "an overlap is a number of seconds, at most ten years", code="broker.overlap"
            )
        with self.changing() as change:
            before = self._current(change.connection, uri)
            if before is None:
                raise unknown(uri)
            until, version = change.at + overlap_s, before + 1
            change.connection.run(
                update(tables.versions)
                .where(tables.versions.c.uri == str(uri), tables.versions.c.version == before)
                .values(not_after=until)
            )
            change.connection.run(
                update(tables.resources)
                .where(tables.resources.c.uri == str(uri))
                .values(current=version)
            )
            self._add_version(change, uri, version, secret)
            change.record(
                "secret.rotated",
                {"resource": str(uri), "version": version, "replaced_until": until},
            )
        return version

    def set_policy(self, uri: ResourceUri, policy: ResourcePolicy) -> None:
        """Say under which terms a secret is released; sessions that are open end.

        ConfigurationError (``broker.secret_unknown``) if there is no such secret.
        """
        place = policy_place(str(uri))
        sealed = self.master.seal(policy.encode(), place, random=self._random)
        with self.changing() as change:
            if self._current(change.connection, uri) is None:
                raise unknown(uri)
            change.connection.run(
                update(tables.resources)
                .where(tables.resources.c.uri == str(uri))
                .values(policy=sealed)
            )
            change.record(
                "policy.set",
                {
                    "resource": str(uri),
                    "policy": policy.digest,
                    "stock_clients": policy.stock_clients,
                    "development": policy.appraisal.accept_development,
                },
                changes_rules=True,
            )

    def revoke(self, kind: Revoked, value: str, reason: str) -> None:
        """Release nothing any more to what `value` names; sessions that are open end.

        ConfigurationError (``broker.revocation``) if `value` or `reason` is none, or it was
        revoked before.
        """
        prefixed = value.startswith("sha256:")
        if (
            _REVOKED.fullmatch(value) is None
            or (prefixed and len(value) != 71)
            or not (prefixed or kind is Revoked.PLATFORM)
        ):
            raise _revocation("names sha256: and 64 hex digits, or a processor's id in hex")
        if not 1 <= len(reason) <= 400 or not reason.isprintable():
            raise _revocation("needs a reason of 1 to 400 printable characters")
        with self.changing() as change:
            table = tables.revocations
            found = change.connection.first(
                select(table.c.at).where(table.c.kind == kind.value, table.c.value == value)
            )
            if found is not None:
                raise _revocation("names what is not revoked yet")
            change.connection.run(
                insert(table).values(kind=kind.value, value=value, reason=reason, at=change.at)
            )
            change.record(
                "revoked",
                {"kind": kind.value, "value": value, "reason": reason},
                changes_rules=True,
            )

    def rewrap(self, old: RootKey, new: RootKey) -> None:
        """Let another root key hold the master key. Raises as `open` and what `new` raises."""
        master, row = self.unwrap_master(self.database, old)
        self.adopt_root(master, row.store_id, new)

    def adopt_root(self, master: bytes, store_id: str, new: RootKey) -> None:
        """As `rewrap`, for a master key that was recovered otherwise."""
        wrapped = new.wrap(master, master_context(store_id))
        with self.changing() as change:
            change.connection.run(
                update(tables.store).values(wrapped_master=wrapped, root_name=new.name)
            )
            change.record("root_key.replaced", {"root_key": new.name})

    def record_backup(self, backup: str, threshold: int, owners: Sequence[str]) -> None:
        """Say in the audit log to which keys (SHA-256, in hex) the master key was given."""
        with self.changing() as change:
            change.record(
                "backup.made",
                {"backup": backup, "threshold": threshold, "owners": list(owners)},
            )

    def resources(self) -> tuple[Resource, ...]:
        """All secrets, without what is secret; AuthenticationError as `resource`."""
        with self.database.reading() as connection:
            rows = connection.each(select(tables.resources).order_by(tables.resources.c.uri))
            return tuple(self._resource(row) for row in rows)

    def resource(self, uri: ResourceUri, connection: Connection) -> Resource | None:
        """One secret, as a transaction sees it.

        AuthenticationError (``broker.store``) if its policy is not what `set_policy` wrote here.
        """
        row = connection.first(_RESOURCE, of_uri=str(uri))
        return None if row is None else self._resource(row)

    def standing(self, uri: ResourceUri, nonce: bytes, connection: Connection) -> Standing:
        """What the answer to the challenge `nonce` meets that asks for `uri`; as `resource`."""
        row = connection.first(_STANDING, of_uri=str(uri), of_nonce=nonce)
        if row is None:
            raise no_store()
        return Standing(
            rules=row.rules,
            answered=row.answered is not None,
            resource=None if row.uri is None else self._resource(row),
        )

    def version(self, uri: ResourceUri, number: int, connection: Connection) -> Version | None:
        """One version of a secret, sealed."""
        row = connection.first(_VERSION, of_uri=str(uri), of_version=number)
        if row is None:
            return None
        return Version(
            number=row.version,
            sealed=row.sealed,
            created=row.created,
            not_after=row.not_after,
        )

    def open_version(self, uri: ResourceUri, version: Version) -> bytes:
        """The secret itself. AuthenticationError (``broker.store``) if it was altered."""
        return self.master.open(version.sealed, secret_place(str(uri), version.number))

    def revocations(self, connection: Connection) -> dict[tuple[Revoked, str], str]:
        """The reasons of all revocations."""
        rows = connection.each(_REVOCATIONS)
        return {(Revoked(row.kind), row.value): row.reason for row in rows}

    def rules(self, connection: Connection) -> int:
        """The entry that changed policies or revocations last."""
        row = connection.first(_RULES)
        if row is None:
            raise no_store()
        return int(row.rules)

    def audit_entries(self) -> Iterator[bytes]:
        """Every entry of the audit log, the oldest first, as one consistent view.

        AuthenticationError (``audit.chain``) if the last one is not the one that was written last.
        """
        with self.database.reading() as connection:
            head = connection.first(select(tables.store.c.digest))
            table = tables.audit
            last = b""
            for row in connection.each(select(table.c.entry).order_by(table.c.sequence)):
                last = row.entry
                yield last
        if head is None or hashlib.sha256(last).digest() != head.digest:
            raise AuthenticationError(
                "the audit log does not end with what was written last: entries were cut off its"
                " end, or added",
                code="audit.chain",
            )

    def last_entries(self, number: int) -> tuple[bytes, ...]:
        """The last entries of the audit log, the oldest first."""
        with self.database.reading() as connection:
            column = tables.audit.c.sequence
            rows = connection.each(
                select(tables.audit.c.entry).order_by(column.desc()).limit(number)
            )
            return tuple(reversed([row.entry for row in rows]))

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """A change now."""
        with self.database.change(at=self.now()) as change:
            yield change

    def _resource(self, row: Row) -> Resource:
        return Resource(
            uri=ResourceUri.parse(row.uri),
            current=row.current,
            policy=None if row.policy is None else self._opened(row.uri, row.policy),
        )

    def _open_policy(self, uri: str, sealed: bytes) -> ResourcePolicy:
        """Opening and reading one takes milliseconds, and the same few are read for every worker.

        What was opened is kept under its place and the very bytes that stood there.
        """
        return load_json(self.master.open(sealed, policy_place(uri)))

    def _current(self, connection: Connection, uri: ResourceUri) -> int | None:
        table = tables.resources
        row = connection.first(select(table.c.current).where(table.c.uri == str(uri)))
        return None if row is None else int(row.current)

    def _add_version(self, change: Change, uri: ResourceUri, number: int, secret: bytes) -> None:
        sealed = self.master.seal(secret, secret_place(str(uri), number), random=self._random)
        change.connection.run(
            insert(tables.versions).values(
                uri=str(uri), version=number, sealed=sealed, created=change.at, not_after=None
            )
        )


def unknown(uri: ResourceUri) -> ConfigurationError:
    """The error of a secret that is not there."""
    return ConfigurationError(f"there is no secret {uri}", code="broker.secret_unknown")


def _check_secret(secret: bytes) -> None:
    if not 1 <= len(secret) <= MAX_SECRET_BYTES:
        raise ConfigurationError(
            f"a secret has 1 to {MAX_SECRET_BYTES} bytes", code="broker.secret_size"
        )


def _revocation(why: str) -> ConfigurationError:
    return ConfigurationError(f"a revocation {why}", code="broker.revocation")
