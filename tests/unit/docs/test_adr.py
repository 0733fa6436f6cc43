"""The index of decision records lists every one, by its title."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "docs" / "adr"


def test_every_record_is_listed_once_and_in_order() -> None:
    listed = re.findall(
        r"^(\d+)\. \[(.*)\]\((.*)\)$", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
    records = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
    titles = [path.read_text().partition("\n")[0].removeprefix("# ") for path in records]
    assert [f"{number}. {title}" for number, title, _ in listed] == titles
    assert [name for _, _, name in listed] == [path.name for path in records]
