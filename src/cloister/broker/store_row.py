"""The store's own row: what can be read of a store without its master key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import select

from cloister.broker import tables
from cloister.broker.database import Database, no_store
from cloister.channel.key_release import BrokerIdentity
from cloister.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRow:
    """The store's own row, as far as it does not change with every entry."""

    format: int
    store_id: str
    root_name: str
    wrapped_master: bytes = field(repr=False)
    sealed_identity_key: bytes = field(repr=False)
    identity: BrokerIdentity
    at: int
    """Time of the last audit entry: no clock of a broker may begin before it."""


def read_row(
    database: Database, *, formats: Collection[int] = frozenset({tables.FORMAT})
) -> StoreRow:
    """Read it; ConfigurationError if there is no store, or one of another format."""
    if not database.has(tables.store):
        raise no_store()
    with database.reading() as connection:
        row = connection.first(select(tables.store))
    if row is None:
        raise no_store()
    if row.format not in formats:
        raise ConfigurationError(
            f"the store in this database is of format {row.format}, and this version's are of"
            f" {tables.FORMAT}: stop its brokers, keep a copy, and run `cloister broker upgrade`,"
            " which knows format 2; of others, put the secrets into a new store",
            code="broker.format",
        )
    return StoreRow(
        format=row.format,
        store_id=row.store_id,
        root_name=row.root_name,
        wrapped_master=row.wrapped_master,
        sealed_identity_key=row.sealed_identity_key,
        identity=BrokerIdentity(row.identity),
        at=row.at,
    )
