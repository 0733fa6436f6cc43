"""Brings the tables of an earlier version to this one's.

From format 2, which lacks what two versions of a manifest have in common for a while. Format 1 kept
policies and sessions that anybody with access to the database could have written: there is nothing
in it that a later version could believe, so secrets and policies are to be put into a new store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
_ADDED: Final = {"overlap_sha256": "VARCHAR(64)", "overlap_until": "BIGINT"}

_SET_BACK: Final = "UPDATE broker_store SET format = 2"


def upgrade(database: Database, root: RootKey, *, now: Clock) -> int:
    """Upgrade the store, all of it or nothing, and say so in its audit log; returns the format.

    No broker may serve from it meanwhile. The root key shows that the store is its owner's.

    Raises:
        ConfigurationError: there is no store, it is of this version's format already or of one
            that cannot be upgraded (``broker.format``), its tables are not those of its format
            (``broker.tables``), or the root key is another one's.
        AuthenticationError: the database was altered (``broker.store``).
        FetchError: the database or the root key cannot be reached.
    """
    row = read_row(database, formats=(FROM, tables.FORMAT))
    _check_tables(database.columns(), row.format)
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
        for name, kind in _ADDED.items():
            change.connection.run(
                text(f"ALTER TABLE {tables.manifests.name} ADD COLUMN {name} {kind}")
            )
        change.connection.run(update(tables.store).values(format=tables.FORMAT))
        change.record("store.upgraded", {"from": FROM, "to": tables.FORMAT})
    return tables.FORMAT


def _check_tables(found: Mapping[str, Collection[str]], number: int) -> None:
    """Refuse a store whose tables are not those of its format: somebody changed them by hand.

    What such a column holds is nothing that an owner signed (``overlap_sha256`` lets an older
    manifest pass), so it is not taken over.
    """
    missing: list[str] = []
    for table in tables.metadata.sorted_tables:
        if table.name not in found:
            missing.append(table.name)
            continue
        names = {column.name for column in table.columns}
        if table is tables.manifests:
            names -= _ADDED.keys()
        missing += [f"{table.name}.{name}" for name in sorted(names - {*found[table.name]})]
    if missing:
        raise _by_hand(f"the store lacks {', '.join(missing)}", [])
    manifests = tables.manifests.name
    there = [name for name in _ADDED if name in found[manifests]]
    drop = [f"ALTER TABLE {manifests} DROP COLUMN {name}" for name in there]
    if number == FROM and there:
        raise _by_hand(
            f"the store is of format {FROM}, and its table {manifests} has"
            f" {' and '.join(there)} already, which this upgrade adds",
            drop,
        )
    if number == tables.FORMAT and len(there) < len(_ADDED):
        lacking = [name for name in _ADDED if name not in there]
        raise _by_hand(
            f"the store says that it is of format {number}, and its table {manifests} lacks"
            f" {' and '.join(lacking)}, so that it is still of format {FROM}",
            [*drop, _SET_BACK],
        )


def _by_hand(what: str, mend: Sequence[str]) -> ConfigurationError:
    """The error of tables that somebody changed; `mend` are statements that change them back."""
    other = f", or change them back ({'; '.join(mend)})" if mend else ""
    return ConfigurationError(
        f"{what}: somebody changed its tables by hand. Put back a copy of the database from before"
        f" that{other}, and run `cloister broker upgrade` again; nothing was changed now",
        code="broker.tables",
    )
