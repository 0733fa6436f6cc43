"""Brings the tables of an earlier version to this one's.

From format 2, which lacks what two versions of a manifest have in common for a while. Format 1 kept
policies and sessions that anybody with access to the database could have written: there is nothing
in it that a later version could believe, so secrets and policies are to be put into a new store.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select, text, update

from cloister.broker import tables
from cloister.broker.database import Database
from cloister.broker.master import MasterKey, master_context
from cloister.broker.root_keys.protocol import RootKey
from cloister.broker.store import Clock
from cloister.broker.store_row import read_row
from cloister.errors import AuthenticationError, ConfigurationError

FROM: Final = 2
_ADDED: Final = ("overlap_sha256 VARCHAR(64)", "overlap_until BIGINT")


def upgrade(database: Database, root: RootKey, *, now: Clock) -> int:
    """Upgrade the store, all of it or nothing, and say so in its audit log; returns the format.

    No broker may serve from it meanwhile. The root key shows that the store is its owner's.

    Raises:
        ConfigurationError: there is no store, it is of this version's format already or of one
            that cannot be upgraded (``broker.format``), or the root key is another one's.
        AuthenticationError: the database was altered (``broker.store``).
        FetchError: the database or the root key cannot be reached.
    """
    row = read_row(database, formats=(FROM, tables.FORMAT))
    keys = MasterKey(root.unwrap(row.wrapped_master, master_context(row.store_id)))
    identity_key = keys.identity_key(row.sealed_identity_key)
    if identity_key.public_key().public_bytes_raw() != row.identity.public_key:
        raise AuthenticationError(
            "the store names another identity than the one in it", code="broker.store"
        )
    with database.change(at=now()) as change:
        found = change.connection.first(select(tables.store.c.format))
        if found is None or found.format != FROM:
            raise ConfigurationError("the store is of this version's format", code="broker.format")
        for column in _ADDED:
            change.connection.run(text(f"ALTER TABLE {tables.manifests.name} ADD COLUMN {column}"))
        change.connection.run(update(tables.store).values(format=tables.FORMAT))
        change.record("store.upgraded", {"from": FROM, "to": tables.FORMAT})
    return tables.FORMAT
