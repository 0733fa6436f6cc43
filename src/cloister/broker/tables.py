"""The broker's tables, the same in SQLite and PostgreSQL.

Nothing in here is a secret in the clear. The audit log may only grow: triggers refuse to change
or delete its rows, so that a mistaken statement fails; who owns the database can still do
anything, which is what the hash chain and its signed checkpoints are for.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    event,
)

FORMAT: Final = 3
"""Of these tables; a broker opens no other."""

metadata: Final = MetaData()

store = Table(
    "broker_store",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("format", Integer, nullable=False),
    Column("store_id", String(64), nullable=False),
    Column("root_name", String(256), nullable=False),
    Column("wrapped_master", LargeBinary, nullable=False),
    Column("identity", LargeBinary, nullable=False),
    Column("sealed_identity_key", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("rules", BigInteger, nullable=False),
)
"""One row: who this broker is, and the head of its audit log. Every change locks it first, so
changes happen one after the other however many brokers there are. ``rules`` is the number of the
last entry that changed what is released to whom."""

resources = Table(
    "broker_resources",
    metadata,
    Column("uri", String(256), primary_key=True),
    Column("current", Integer, nullable=False),
    Column("policy", LargeBinary, nullable=True),
    Column("created", BigInteger, nullable=False),
)
"""``policy`` is sealed to its name, so that nobody else writes one."""

versions = Table(
    "broker_versions",
    metadata,
    Column("uri", String(256), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=True),
)
"""``not_after`` is set once a newer version is in force: until then this one is still released."""

revocations = Table(
    "broker_revocations",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("value", String(256), primary_key=True),
    Column("reason", String(512), nullable=False),
    Column("at", BigInteger, nullable=False),
)

sessions = Table(
    "broker_sessions",
    metadata,
    Column("nonce", LargeBinary(32), primary_key=True),
    Column("token_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("stock", Boolean, nullable=False),
    Column("uri", String(256), nullable=True),
    Column("version", Integer, nullable=True),
    Column("wrapping_key", LargeBinary, nullable=False),
    Column("statement", LargeBinary(32), nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Column("evidence", LargeBinary, nullable=True),
    Column("rules", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
    Column("tag", LargeBinary(32), nullable=False),
)
"""Challenges that were answered. A row outlives the challenge, so no answer counts twice. ``tag``
is the master key's MAC over the rest: a session that somebody else wrote releases nothing."""

manifests = Table(
    "broker_manifests",
    metadata,
    Column("pin_id", String(128), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("overlap_sha256", String(64), nullable=True),
    Column("overlap_until", BigInteger, nullable=True),
)
"""The highest version accepted under each pin: nothing older is accepted again, but for the one
before it until the time that its owners signed."""

releases = Table(
    "broker_releases",
    metadata,
    Column("nonce", LargeBinary(32), primary_key=True),
    Column("uri", String(256), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""What a session was given: each secret once."""

audit = Table(
    "broker_audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
)


def _ddl(dialect: str, statement: str) -> None:
    """Run `statement` after the audit table was made in a database of this kind."""
    ddl = DDL(statement)  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
    event.listen(audit, "after_create", ddl.execute_if(dialect=dialect))


for _change in ("UPDATE", "DELETE"):
    _ddl(
        "sqlite",
        f"CREATE TRIGGER broker_audit_no_{_change.lower()} BEFORE {_change} ON broker_audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END",
    )
_ddl(
    "postgresql",
    "CREATE FUNCTION broker_audit_only_grows() RETURNS trigger AS "
    "'BEGIN RAISE EXCEPTION ''the audit log only grows''; END' LANGUAGE plpgsql",
)
_ddl(
    "postgresql",
    "CREATE TRIGGER broker_audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE "
    "ON broker_audit EXECUTE FUNCTION broker_audit_only_grows()",
)
