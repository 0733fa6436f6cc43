"""``cloister broker owner-key|backup|share|recover``: a store's master key, kept by its owners."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.broker_store import (
    DEFAULT_ROOT,
    DEFAULT_STORE,
    RootKeyName,
    StoreAddress,
    opened_store,
)
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.broker.backup import SealedShare
    from cloister.broker.owner_keys import Owner, OwnerKey

OwnersKey = Annotated[
    Path, typer.Option("--key", help="A private key that `cloister broker owner-key` made.")
]


def owner_key(
    file: Annotated[Path, typer.Argument(help="The private key to write; FILE.pub beside it.")],
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
) -> None:
    """Make a key for somebody who keeps a share, or for a machine that recovers."""
    from cloister.broker.owner_keys import OwnerKey
    from cloister.broker.root_keys.names import write_new

    made = OwnerKey.generate(name)
    write_new(file, made.encode())
    write_new(_public(file), made.owner.encode())
    typer.echo(f"{_public(file)}  {made.owner.fingerprint}")


def backup(
    owner: Annotated[
        list[Path], typer.Option("--owner", help="An owner's public key. Repeatable.")
    ],
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=255, help="How many owners recover.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Write the master key in shares, each sealed to its owner. Copy the database besides."""
    from cloister.broker.backup import make_backup
    from cloister.broker.root_keys.names import write_new
    from cloister.broker.root_keys.places import open_root_key

    owners = [_owner(path) for path in owner]
    with opened_store(store, root_key) as opened:
        master, row = opened.unwrap_master(opened.database, open_root_key(root_key))
        shares = make_backup(
            master,
            store_id=row.store_id,
            identity_key=opened.identity_key,
            owners=owners,
            threshold=threshold,
            now=int(opened.now()),
        )
        _folder(out)
        # Before any share leaves: the log may name too many who have one, never too few.
        opened.record_backup(
            shares[0].statement.backup.hex(), threshold, [each.fingerprint for each in owners]
        )
        for share, owned in zip(shares, owners, strict=True):
            path = out / f"share-{share.number}.json"
            write_new(path, share.encode())
            typer.echo(f"{path}  {owned.name}  {owned.fingerprint}")
    typer.echo(f"{threshold} of {len(owners)} recover the store of {shares[0].statement.identity}")


def share(
    file: Annotated[Path, typer.Argument(help="Your share.")],
    key: OwnersKey,
    to: Annotated[Path, typer.Option("--to", help="The recovering machine's public key.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
) -> None:
    """Seal your share to a machine that recovers. Ask first whose key that is."""
    from cloister.broker.backup import hand_over
    from cloister.broker.root_keys.names import write_new

    recovering = _owner(to)
    handed = hand_over(_share(file), _key(key), recovering)
    write_new(out, handed.encode())
    typer.echo(f"sealed to {recovering.name}  {recovering.fingerprint}")


def recover(
    file: Annotated[list[Path], typer.Argument(help="Shares that were handed over.")],
    key: OwnersKey,
    root_key: Annotated[
        str,
        typer.Option("--root-key", metavar="KIND:REST", help="The new root key, which exists."),
    ],
    store: StoreAddress = DEFAULT_STORE,
) -> None:
    """Open a copy of the store by its owners' shares, and let a new root key hold it."""
    from cloister.broker.backup import recover as join_shares
    from cloister.broker.clock import SteadyWall
    from cloister.broker.database import Database
    from cloister.broker.root_keys.places import open_root_key
    from cloister.broker.store import Store
    from cloister.broker.store_row import read_row

    new = open_root_key(root_key)
    database = Database.open(store)
    try:
        row = read_row(database)
        shares = [_share(path) for path in file]
        master = join_shares(shares, _key(key), identity=row.identity, store_id=row.store_id)
        opened = Store.recovered(database, master, now=SteadyWall(not_before=row.at))
        opened.adopt_root(master, row.store_id, new)
        typer.echo(f"the store of {opened.identity} is opened by {new.name} from now on")
    finally:
        database.close()


def _public(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be made: {error.strerror}", code="broker.file"
        ) from None


def _owner(path: Path) -> Owner:
    from cloister.broker.owner_keys import MAX_FILE_BYTES, Owner

    return Owner.parse(_read(path, MAX_FILE_BYTES))


def _key(path: Path) -> OwnerKey:
    from cloister.broker.owner_keys import MAX_FILE_BYTES, OwnerKey
    from cloister.broker.root_keys.names import read_private

    return OwnerKey.parse(read_private(path, limit=MAX_FILE_BYTES))


def _share(path: Path) -> SealedShare:
    from cloister.broker.backup import MAX_DOCUMENT_BYTES, SealedShare

    return SealedShare.parse(_read(path, MAX_DOCUMENT_BYTES))


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="broker.file"
        ) from None
