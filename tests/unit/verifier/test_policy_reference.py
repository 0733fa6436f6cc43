"""The reference of policies tells every field, its presets, and an example that is one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from cloister.verifier import policy

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "policy.md").read_text()
STRICT = policy.strict().to_json()

ROWS = {
    name: (strict, unchecked)
    for name, strict, unchecked in re.findall(
        r"^\| `(\w+)` \|[^|]*\|[^|]*\| `([^|]*)` \| ([^|]*) \|$", PAGE, flags=re.MULTILINE
    )
}


def test_every_field_is_there_and_no_other() -> None:
    assert list(ROWS) == [
        field.name for field in dataclasses.fields(policy.AppraisalPolicy) if field.init
    ]


def test_the_strict_preset_is_told() -> None:
    assert {name: json.loads(strict) for name, (strict, _) in ROWS.items()} == STRICT


def test_what_may_be_unchecked_is_told() -> None:
    booleans = {name for name, value in STRICT.items() if isinstance(value, bool)}
    assert {name for name, (_, unchecked) in ROWS.items() if unchecked == "–"} == booleans


def test_how_development_differs_is_told() -> None:
    development = policy.development().to_json()
    differing = [name for name in STRICT if STRICT[name] != development[name]]
    assert differing == ["accept_development", "memory_confidentiality"]
    assert development["memory_confidentiality"] == sorted([*policy.ENCRYPTED_MEMORY, "none"])
    told = PAGE.partition("`development()` differs from it in two fields: ")[2].partition(".")[0]
    assert [name for name in STRICT if f"`{name}`" in told] == differing


def test_the_example_is_a_policy() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    read = policy.load_toml(example.encode())
    assert policy.load_toml(read.dump_toml().encode()) == read
    assert policy.load_json(read.dump_json().encode()) == read


def test_all_states_and_products_are_named() -> None:
    words = (*policy.TCB_STATUSES, *policy.SNP_PRODUCTS, *policy.TCB_COMPONENTS)
    assert [word for word in words if f"`{word}`" not in PAGE] == []
