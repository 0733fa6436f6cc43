"""The table "which change moves which register" of docs/how-to/boot-images.md, as tests read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/how-to/boot-images.md"
HEAD = "| Change | Registers that move | Claims that refuse it |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    change: str
    moved: tuple[int, ...]
    """PCR 10 apart, which follows those from 0 to 9."""
    claims: tuple[str, ...]


def rows() -> tuple[Row, ...]:
    """Every row, in the page's order."""
    lines = iter(PAGE.read_text().splitlines())
    for line in lines:
        if line == HEAD:
            break
    next(lines)  # the rule below the head
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        change, moved, claims = (cell.strip() for cell in line.strip("|").split("|"))
        found.append(
            Row(
                change=change,
                moved=() if moved == "none" else tuple(map(int, moved.split(", "))),
                claims=() if claims == "–" else tuple(c.strip("`") for c in claims.split(", ")),
            )
        )
    return tuple(found)
