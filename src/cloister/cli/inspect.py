"""``cloister inspect``: what is this file, and what does it say?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.exits import AFFIRMED, CANNOT_DECIDE, REFUSED
from cloister.errors import MalformedError
from cloister.evidence.recognise import Kind
from cloister.strictjson import Json, JsonObject


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Evidence, endorsements, results.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each file.")
    ] = False,
) -> None:
    """Decode files; nothing is verified. Exit 0 decoded, 1 malformed, 3 not recognised."""
    from cloister.cli.evidence_files import read_files

    codes = []
    for file in read_files(files):
        code, found = _look(file.name, file.kind, file.data)
        codes.append(code)
        if as_json:
            typer.echo(json.dumps(found))  # in ASCII, which no terminal obeys
        else:
            _print(found)
    raise typer.Exit(max(codes, default=CANNOT_DECIDE))


def _look(name: str, kind: Kind, data: bytes) -> tuple[int, JsonObject]:
    from cloister.cli.decoding import decode

    found: JsonObject = {"file": name, "kind": kind.value, "bytes": len(data)}
    if kind is Kind.UNKNOWN:
        return CANNOT_DECIDE, {**found, "error": "nothing that is known begins like this"}
    try:
        return AFFIRMED, {**found, "decoded": decode(kind, data)}
    except MalformedError as error:
        return REFUSED, {**found, "error": f"it does not decode: {error}"}


def _print(found: JsonObject) -> None:
    from rich.console import Console
    from rich.text import Text

    from cloister.cli.asking import plain

    console = Console(highlight=False)
    title = f"{found['file']}: {found['kind']}, {found['bytes']} bytes (decoded, not verified)"
    console.print(Text(plain(title), style="bold"))
    if "error" in found:
        console.print(Text(f"  {plain(str(found['error']))}", style="red"))
    for line in _lines(found.get("decoded"), indent=1):
        # A value of several lines must not look like values of the next ones.
        console.print(Text(plain(line).replace("\n", "�")), soft_wrap=True)


def _lines(value: Json, *, indent: int) -> list[str]:
    """Names and values, one a line, nested ones indented."""
    space = "  " * indent
    if isinstance(value, dict):
        pairs = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(f"[{number}]", inner) for number, inner in enumerate(value)]
    else:
        return [] if value is None else [f"{space}{value}"]
    lines = []
    for name, inner in pairs:
        if isinstance(inner, dict | list) and inner and not _is_short(inner):
            lines.append(f"{space}{name}:")
            lines.extend(_lines(inner, indent=indent + 1))
        else:
            lines.append(f"{space}{name}: {_scalar(inner)}")
    return lines


def _is_short(value: Json) -> bool:
    """A list that fits a line: up to 16 numbers or texts without structure."""
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(inner, int | str) for inner in value)
        and sum(len(str(inner)) + 2 for inner in value) <= 80
    )


def _scalar(value: Json) -> str:
    if isinstance(value, list) and value:
        return ", ".join(map(_scalar, value))
    if value is None or value in ([], {}):
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
