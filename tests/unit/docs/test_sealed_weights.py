"""The reference of sealed weights names every code that they are refused with, and its limits."""

from __future__ import annotations

import re
from pathlib import Path

import cloister
from cloister.attester import memory
from cloister.weights import header

SOURCE = Path(cloister.__file__).parent
PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "sealed-weights.md").read_text()


def test_every_code_is_explained_and_no_other() -> None:
    others = (
        *("worker/weights.py", "worker/weights_keys.py"),
        *("cli/weights.py", "cli/sealed_options.py"),
    )
    files = [*(SOURCE / "weights").glob("*.py"), *(SOURCE / name for name in others)]
    files.append(Path(str(memory.__file__)))
    given = {code for file in files for code in re.findall(r'"(weights\.\w+)"', file.read_text())}
    rows = re.findall(r"^\| (`weights\..*?) \|", PAGE.partition("## Errors")[2], re.MULTILINE)
    told = re.findall(r"`(weights\.\w+)`", " ".join(rows))
    assert sorted(told) == sorted(given)


def test_limits_are_those_of_the_source() -> None:
    assert header.FORMAT in PAGE
    assert f"`{header.MAGIC.decode()}`" in PAGE
    for number in (header.MIN_CHUNK, header.MAX_CHUNK, header.DEFAULT_CHUNK, header.MAX_FILES):
        assert f"{number:,}" in PAGE
    assert (header.MAX_BYTES, header.MAX_CHUNKS) == (2**42, 2**32)
