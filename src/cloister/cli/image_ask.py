"""One question to a booted guest, by the ordinary client, which checks the guest first."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from cloister.cli.asking import plain
from cloister.client.connect import connect

ANSWER_WITHIN_S: Final = 300.0
"""Of a whole answer: emulated processors compute a few tokens a second."""


def ask_guest(address: str, kit: Path, api_key: str | None, model: str, question: str) -> str:
    """The whole answer, in characters that a terminal can show."""
    with connect(address, kit=kit, development=True, trust_env=False) as connection:
        result = connection.verify()
        typer.echo(f"Checked: {result.platform}, {len(result.claims)} claims hold", err=True)
        answer = connection.http.post(
            "/v1/chat/completions",
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            json={"model": model, "messages": [{"role": "user", "content": question}]},
            timeout=ANSWER_WITHIN_S,
        )
        answer.raise_for_status()
        return plain(str(answer.json()["choices"][0]["message"]["content"]))
