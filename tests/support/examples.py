"""The examples of `docs/how-to/frameworks.md`, with a test's addresses in place of the page's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from support.endpoints import Ground, write_kit

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "frameworks.md"
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

_BLOCKS: Final[list[tuple[str, str]]] = _BLOCK.findall(PAGE.read_text())
LLAMA_INDEX: Final = [text for kind, text in _BLOCKS if kind == "python" and "llama_index" in text]
PYTHON: Final = [text for kind, text in _BLOCKS if kind == "python" and text not in LLAMA_INDEX]
NODE: Final = [text for kind, text in _BLOCKS if kind == "js"]


def placed(example: str, ground: Ground, kit: Path) -> str:
    """`example` for the worker and the proxy of `ground`; its pins are written to `kit`."""
    for written, real in (
        ("http://127.0.0.1:8440", ground.worker),
        ("http://127.0.0.1:8788", ground.proxied),
        ("kit/", str(write_kit(ground, kit))),
    ):
        example = example.replace(written, real)
    return example
