"""``cloister keys``: the API keys that a worker checks inside the seal."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(no_args_is_help=True)

DEFAULT_FILE = Path("~/.config/cloister/api-keys.json")

KeyFile = Annotated[
    Path,
    typer.Option("--file", help="The table of keyed hashes.", envvar="CLOISTER_API_KEYS"),
]


def key_file(path: Path = DEFAULT_FILE) -> Path:
    """Where the table lies: what was given, with ``~`` spelled out."""
    return path.expanduser()


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is; for the list only.")],
    file: KeyFile = DEFAULT_FILE,
) -> None:
    """Make a key and print it: this is the only time that it can be seen."""
    from cloister.worker.api_keys import ApiKeyFile

    entry, api_key = ApiKeyFile(key_file(file)).add(name, at=int(time.time()))
    typer.echo(f"{entry.key_id}  {entry.name}", err=True)
    typer.echo(api_key)


@keys.command("list")
def list_keys(file: KeyFile = DEFAULT_FILE) -> None:
    """List the keys: id, when made, when revoked, name. The keys themselves are kept nowhere."""
    from cloister.worker.api_keys import ApiKeyFile

    for entry in ApiKeyFile(key_file(file)).entries():
        state = "in force" if entry.revoked is None else f"revoked {_day(entry.revoked)}"
        typer.echo(f"{entry.key_id}  {_day(entry.created)}  {state:18}  {entry.name}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `cloister keys list` shows.")],
    file: KeyFile = DEFAULT_FILE,
) -> None:
    """Revoke a key; a running worker notices within a second or two."""
    from cloister.worker.api_keys import ApiKeyFile

    entry = ApiKeyFile(key_file(file)).revoke(key_id, at=int(time.time()))
    typer.echo(f"{entry.key_id}  {entry.name}  revoked", err=True)


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
