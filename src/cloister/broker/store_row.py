"""The store's own row: what can be read of a store without its master key."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, inspect, select

from cloister.broker import tables
from cloister.broker.database import Database, no_store
from cloister.channel.key_release import BrokerIdentity
from cloister.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRow:
    """The store's own row, as far as it does not change with every entry."""

    store_id: str
    root_name: str
    wrapped_master: bytes = field(repr=False)
    sealed_identity_key: bytes = field(repr=False)
    identity: BrokerIdentity
    at: int
    """Time of the last audit entry: no clock of a broker may begin before it."""


def read_row(database: Database) -> StoreRow:
    """Read it; ConfigurationError if there is no store, or one of another format."""
    with database.reading() as connection:
        there = inspect(connection).has_table(tables.store.name)
        row = find_row(connection) if there else None
    if row is None:
        raise no_store()
    return row


def find_row(connection: Connection) -> StoreRow | None:
    """The same in a transaction that is open; None where there is no store."""
    row = connection.execute(select(tables.store)).one_or_none()
    if row is None:
        return None
    if row.format != tables.FORMAT:
        raise ConfigurationError(
            "the store in this database is of another format than this version's",
            code="broker.format",
        )
    return StoreRow(
        store_id=row.store_id,
        root_name=row.root_name,
        wrapped_master=bytes(row.wrapped_master),
        sealed_identity_key=bytes(row.sealed_identity_key),
        identity=BrokerIdentity(bytes(row.identity)),
        at=row.at,
    )
