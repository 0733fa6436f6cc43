"""One question to a booted guest, by the ordinary client, which checks the guest first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from cloister.cli.asking import plain
from cloister.client.connect import connect
from cloister.client.conversation import Conversation


def ask_guest(
    address: str,
    kit: Path,
    api_key: str | None,
    model: str,
    question: str,
    *,
    began: Callable[[], None],
) -> str:
    """The whole answer, in characters that a terminal can show; `began` hears of its first ones."""
    with connect(address, kit=kit, development=True, trust_env=False) as connection:
        result = connection.verify()
        typer.echo(f"Checked: {result.platform}, {len(result.claims)} claims hold", err=True)
        said: list[str] = []
        for piece in Conversation(connection, model=model, api_key=api_key).ask(question):
            if not said:
                began()
            said.append(piece)
        return plain("".join(said))
