"""The table of docs/reference/sandbox.md, and the hostile program whose probes it names."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

TESTS: Final = Path(__file__).parents[1]
PAGE: Final = TESTS.parent / "docs" / "reference" / "sandbox.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: what is tried, the names of probes, who stops it, and the tests that show it."""

    attack: str
    probes: tuple[str, ...]
    stopped_by: tuple[str, ...]
    tests: tuple[str, ...]


def rows() -> tuple[Row, ...]:
    """Every line of every table on the page that has four columns."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("| ") or len(cells) != 4 or cells[0] in ("Attack", "---"):
            continue
        found.append(
            Row(
                attack=cells[0],
                probes=tuple(re.findall(r"`([a-z0-9_]+)`", cells[1])),
                stopped_by=tuple(cells[2].split(", ")),
                tests=tuple(re.findall(r"`(\S+::\S+|\S+\.py)`", cells[3])),
            )
        )
    return tuple(found)


def probes_stopped_by(layer: str) -> set[str]:
    """The probes that the page says `layer` stops by itself, of those this machine can try."""
    named = {name for row in rows() if layer in row.stopped_by for name in row.probes}
    return named & set(sandbox_probe.PROBES)


def _load(path: Path) -> ModuleType:
    """Load a program of the tests that runs by itself, and is no module of a package."""
    name = f"hostile_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


sandbox_probe: Final = _load(TESTS / "integration" / "sandbox_probe.py")
