"""Every code that a verifier can give is explained in the reference, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import cloister
from cloister.verifier import policy
from cloister.verifier.report import claim_names

SOURCE = Path(cloister.__file__).parent
PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "codes.md").read_text()

BY_POSITION = {"refuse": 1, "undecided": 1, "_unchanged": 1}
ELSEWHERE = {"verifier.nothing_checked", "verifier.no_keys"}
"""Mistakes of the caller's, which no report can cause."""
ONLY_IN_CALLERS = {"tpm_public_malformed"}
"""For enrolment, which parses public areas; no report holds one."""


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def codes(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_CODE":
            assert node.value is not None
            yield from texts(node.value)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_CHECKED":
            yield from texts(node.value)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        for keyword in node.keywords:
            if keyword.arg == "code":
                yield from texts(keyword.value)
        if name in BY_POSITION and len(node.args) > BY_POSITION[name]:
            yield from texts(node.args[BY_POSITION[name]])
        if name == "_reader" and len(node.args) > 2:
            yield from texts(node.args[2])


def test_codes_and_reference_agree() -> None:
    used = {
        code
        for folder in ("evidence", "endorsements", "verifier")
        for path in (SOURCE / folder).rglob("*.py")
        for code in codes(path)
    }
    first_cells = "\n".join(re.findall(r"^\| (`[^|]*) \|", PAGE, flags=re.MULTILINE))
    explained = set(re.findall(r"`([a-z_.]+)`", first_cells))
    assert used - ELSEWHERE - ONLY_IN_CALLERS == explained


def test_every_claim_is_in_the_reference() -> None:
    for name in claim_names(policy.strict()):
        assert f"`{name}`" in PAGE
