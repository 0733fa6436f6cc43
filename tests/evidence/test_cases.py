"""All recorded cases against their expected verdicts, layer by layer and fact by fact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.cases.verdict import verdict

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"
CASES = sorted(path.parent for path in EVIDENCE.glob("*/*/case.json"))

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def told(path: Path) -> dict[str, Any]:
    loaded = json.loads((path / "case.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def plain(value: object) -> object:
    """A layer's word without the remark that some cases put behind it in brackets."""
    return value.partition(" (")[0] if isinstance(value, str) else value


def own(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts without what another verifier (``dcap_qvl_…``) said of the same evidence."""
    return {
        name: own(value) if isinstance(value, dict) else value
        for name, value in facts.items()
        if not name.startswith("dcap_qvl_")
    }


def test_there_are_cases() -> None:
    assert len(CASES) >= 121


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_verdict(path: Path) -> None:
    expected = told(path)["expected"]
    found = verdict(path)
    assert (found["result"], found["reason"]) == (expected["result"], expected.get("reason"))


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_layers(path: Path) -> None:
    expected = {name: plain(value) for name, value in told(path)["expected"]["layers"].items()}
    layers = verdict(path)["layers"]
    assert isinstance(layers, dict)
    assert {name: plain(layers.get(name)) for name in expected} == expected


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_facts(path: Path) -> None:
    facts = verdict(path)["facts"]
    assert isinstance(facts, dict)
    expected = own(told(path).get("facts", {}))
    shared = expected.keys() & facts.keys()
    assert {name: facts[name] for name in shared} == {name: expected[name] for name in shared}


@pytest.mark.parametrize("path", CASES[::12], ids=name_of)
def test_the_answer_is_never_read(path: Path, tmp_path: Path) -> None:
    """The same verdict without the members that tell it."""
    copy = tmp_path / path.parent.name / path.name
    shutil.copytree(path, copy)
    (tmp_path / "roots").symlink_to(EVIDENCE / "roots")
    members = told(path)
    for name in ("expected", "facts", "how_known", "description", "quirks"):
        members.pop(name, None)
    (copy / "case.json").write_text(json.dumps(members))
    assert verdict(copy) == verdict(path)
