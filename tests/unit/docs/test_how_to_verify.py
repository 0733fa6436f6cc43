"""The programs in the page about verifying run, one after the other, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cloister.verifier import platforms

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "verify.md"
TEXT = PAGE.read_text()


def test_the_programs_run(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("joserfc")
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    told = capsys.readouterr().out
    assert "cpu0 expected.measurement affirming None" in told
    assert "development (AMD SEV-SNP (Milan))" in told


def test_every_platform_is_listed() -> None:
    listed = set(re.findall(r"\| `verify_\w+` \| `(\w+)` \|$", TEXT, flags=re.MULTILINE))
    folder = Path(str(platforms.__file__)).parent
    verifiers = {
        path.stem
        for path in folder.glob("*.py")
        if re.search(r"^def verify_\w+\(", path.read_text(), flags=re.MULTILINE)
    }
    assert listed == verifiers
