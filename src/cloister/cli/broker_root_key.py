"""``cloister broker root-key``: make one, and let another hold the store's master key."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli.broker_store import (
    DEFAULT_ROOT,
    DEFAULT_STORE,
    RootKeyName,
    StoreAddress,
    opened_store,
)

root_key = typer.Typer(no_args_is_help=True)

_NAME_HELP = (
    "KIND:REST. sealed-file:PATH, pkcs11:token=…;object=…?module-path=…&pin-source=…, "
    "tpm:PATH?pcrs=…; to use also vault:https://… and aws-kms:ARN?…"
)


@root_key.command()
def make(name: Annotated[str, typer.Argument(help=_NAME_HELP)]) -> None:
    """Make a root key where there is none. Nothing is overwritten."""
    from cloister.broker.root_keys.places import make_root_key

    typer.echo(f"made: {make_root_key(name).name}")


@root_key.command()
def replace(
    name: Annotated[str, typer.Argument(help="The new one, which exists. " + _NAME_HELP)],
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Let another root key hold the store's master key. Brokers go on; start them with it next."""
    from cloister.broker.root_keys.places import open_root_key

    new = open_root_key(name)
    with opened_store(store, root_key) as opened:
        opened.rewrap(open_root_key(root_key), new)
    typer.echo(f"the store is opened by {new.name} from now on")
