"""What the commands of ``cloister broker`` share: the store, and its root key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from cloister.broker.store import Store

DEFAULT_STORE: Final = "sqlite:///cloister-broker.db"
DEFAULT_ROOT: Final = "development-file:cloister-broker-root.key"

StoreAddress = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="ADDRESS",
        help="sqlite:///FILE, or postgresql://USER@HOST/DATABASE for several brokers.",
        envvar="CLOISTER_BROKER_STORE",
    ),
]
RootKeyName = Annotated[
    str,
    typer.Option(
        "--root-key",
        metavar="KIND:REST",
        help="Where the root key lives.",
        envvar="CLOISTER_BROKER_ROOT_KEY",
    ),
]


@contextlib.contextmanager
def opened_store(store: str, root_key: str) -> Iterator[Store]:
    """Open the store; its clock begins no earlier than its last audit entry."""
    from cloister.broker.clock import SteadyWall
    from cloister.broker.database import Database
    from cloister.broker.root_keys.places import open_root_key
    from cloister.broker.store import Store
    from cloister.broker.store_row import read_row

    database = Database.open(store)
    try:
        now = SteadyWall(not_before=read_row(database).at)
        yield Store.open(database, open_root_key(root_key), now=now)
    finally:
        database.close()
