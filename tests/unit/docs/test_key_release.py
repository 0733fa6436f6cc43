"""The page on key release tells every code, as the code does."""

from __future__ import annotations

import re
from pathlib import Path

from cloister.broker import denial

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "key-release.md").read_text()


def test_every_code_is_told_and_used() -> None:
    told = re.findall(r"^\| `key_release\.(\w+)` \|", PAGE, re.MULTILINE)
    listed = re.findall(r"^``key_release\.(\w+)``", denial.__doc__ or "", re.MULTILINE)
    assert told == listed
    source = "".join(
        path.read_text() for path in (ROOT / "src" / "cloister" / "broker").glob("*.py")
    )
    used = set(re.findall(r'Denied\(\s*"(\w+)"', source)) | {"malformed", "resource"}
    assert used == set(told)
