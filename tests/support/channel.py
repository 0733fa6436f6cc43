"""What the channel's tests share: vectors read against a schema, and division into pieces."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cloister.channel.bhttp import Data

VECTORS = Path(__file__).parents[1] / "vectors"

HEX = re.compile(r"(?:[0-9a-f]{2})*")
PROVENANCE = {"document": str, "section": str, "note": str}
MESSAGE = {"sequence": int, "pt": HEX, "aad": HEX, "ct": HEX}
EXPORT = {"context": HEX, "length": int, "value": HEX}


def conforms(value: Any, schema: Any, where: str = "vectors") -> None:
    """Assert that `value` has exactly the shape of `schema`.

    A dict names every key; a list holds the schema of each item; a tuple lists alternatives
    (None among them for null); a pattern is a whole string; a type is that type.
    """
    match schema:
        case dict():
            assert isinstance(value, dict) and value.keys() == schema.keys(), where
            for key, inner in schema.items():
                conforms(value[key], inner, f"{where}.{key}")
        case list():
            assert isinstance(value, list), where
            for index, item in enumerate(value):
                conforms(item, schema[0], f"{where}[{index}]")
        case re.Pattern():
            assert isinstance(value, str) and schema.fullmatch(value), where
        case (None, inner):
            if value is not None:
                conforms(value, inner, where)
        case _:
            assert type(value) is schema, where


def load(path: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the cases of one vector file, checked against the schema of a case."""
    document = json.loads((VECTORS / path).read_text())
    conforms(document, {"provenance": PROVENANCE, "cases": [case]}, path)
    assert document["cases"], path
    return list(document["cases"])


def cut(data: bytes, sizes: int | list[int]) -> list[bytes]:
    """Cut `data` into pieces of the given sizes, over and over; no piece is lost."""
    pieces, at, turn = [], 0, 0
    cycle = [sizes] if isinstance(sizes, int) else sizes
    while at < len(data):
        size = max(1, cycle[turn % len(cycle)])
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def joined(events: list[Any]) -> list[Any]:
    """Join neighbouring runs of content, whose division means nothing."""
    result: list[Any] = []
    for event in events:
        if isinstance(event, Data) and result and isinstance(result[-1], Data):
            result[-1] = Data(data=result[-1].data + event.data)
        else:
            result.append(event)
    return result
