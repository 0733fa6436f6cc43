"""The reference of the effective configuration names every member, with its value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.cli.measure import EngineOptions, effective_for
from cloister.cli.model_options import ModelOptions, models_from
from cloister.cli.upstream_options import Upstream, upstream_configuration
from cloister.strictjson import JsonObject
from cloister.worker.configuration import engine_descriptions

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "configuration.md").read_text()
USUAL: JsonObject = effective_for(models_from(ModelOptions()), EngineOptions())
IN_TEXT = {"engine", "model", "prefix_cache", "managed", "isolation"}
"""Members of every engine, told in a sentence."""


def told(title: str) -> list[str]:
    """Names in the first column of the tables below a heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    rows = re.findall(r"^\| (`.*?) \|", found[1], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)]


def members(name: str) -> JsonObject:
    section = USUAL[name]
    assert isinstance(section, dict)
    return section


def test_every_member_is_told_and_no_other() -> None:
    under = effective_for(models_from(ModelOptions()), EngineOptions(manifest_sha256="0" * 64))
    assert {name: under[name] for name in USUAL} == USUAL
    assert sorted(told("The effective configuration")) == sorted(under)
    assert sorted(told("`separation`")) == sorted(members("separation"))
    limits = members("worker")["limits"]
    assert isinstance(limits, dict)
    assert sorted(told("`worker`")) == sorted([*members("worker"), *limits])


@pytest.mark.parametrize(
    "configuration",
    [
        USUAL,
        upstream_configuration(Upstream(address="unix:/x", name="m", cache_salt=False)),
        upstream_configuration(Upstream(address="", application="a:b", name="m", cache_salt=False)),
    ],
    ids=["embedded", "upstream", "application"],
)
def test_every_member_of_an_engine_is_told(configuration: JsonObject) -> None:
    (engine,) = engine_descriptions(configuration)
    assert engine.keys() - IN_TEXT - set(told("`engines`")) == set()


def test_limits_stand_there_with_their_values() -> None:
    limits = members("worker")["limits"]
    assert isinstance(limits, dict)
    table = PAGE.partition("`limits`, in bytes")[2]
    written: dict[str, int] = {}
    for names, values in re.findall(r"^\| (`[a-z_`, ]+) \| ([\d, ]+) \|", table, re.MULTILINE):
        written |= zip(re.findall(r"[a-z_]+", names), map(int, values.split(", ")), strict=True)
    assert written == limits
