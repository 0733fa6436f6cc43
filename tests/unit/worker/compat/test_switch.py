"""Compatible paths are off, are switched on by name, and stand in the measured configuration."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.channel.claims import parse_claims
from cloister.cli.measure import settings_for
from cloister.cli.serve import upstream_plan
from cloister.cli.upstream_options import Upstream
from cloister.errors import ConfigurationError
from cloister.testing.fake_engine import FakeEngine
from cloister.worker.configuration import claims_of, effective_configuration, settings_of
from cloister.worker.operation import Operation
from cloister.worker.settings import Dialect, WorkerSettings


def configured(*dialects: Dialect) -> dict[str, Any]:
    settings = WorkerSettings(compat=frozenset(dialects))
    return dict(effective_configuration([FakeEngine()], settings))


def test_they_are_off_unless_named() -> None:
    assert settings_for("").compat == frozenset()
    assert WorkerSettings().compat == frozenset()
    assert configured()["worker"]["compat"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosmian", {Dialect.COSMIAN}),
        ("triton", {Dialect.TRITON}),
        ("triton,cosmian", set(Dialect)),
        (" cosmian , triton,", set(Dialect)),
    ],
)
def test_they_are_switched_on_by_name(text: str, expected: set[Dialect]) -> None:
    assert settings_for(text).compat == expected


@pytest.mark.parametrize("text", ["blindllama", "Cosmian", "cosmian;triton"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="cosmian and triton") as caught:
        settings_for(text)
    assert caught.value.code == "configuration.compat"


def test_they_stand_in_the_claims_and_read_back() -> None:
    configuration = configured(Dialect.TRITON, Dialect.COSMIAN)
    assert configuration["worker"]["compat"] == ["cosmian", "triton"]
    assert settings_of(configuration).compat == frozenset(Dialect)
    claims = claims_of(configuration, [FakeEngine()])
    assert parse_claims(claims.encode()).configuration == configuration
    assert claims.subject != claims_of(configured(), [FakeEngine()]).subject


@pytest.mark.parametrize(
    "value",
    [
        ["triton", "cosmian"],
        ["cosmian", "cosmian"],
        ["other"],
        ["cosmian", "other"],
        [["cosmian"]],
        "cosmian",
        {"cosmian": 1},
        None,
        0,
    ],
)
def test_a_configuration_has_one_spelling(value: object) -> None:
    configuration = configured(*Dialect)
    settings_of(configuration)
    worker = {**configuration["worker"], "compat": value}
    with pytest.raises(ConfigurationError):
        settings_of({**configuration, "worker": worker})


def test_in_front_of_an_engine_of_ones_own(tmp_path: Any) -> None:
    def listed(compat: str) -> object:
        upstream = Upstream(address="http://127.0.0.1:1", name="m", cache_salt=True, compat=compat)
        worker: Any = upstream_plan(tmp_path, Operation(), upstream).subject.configuration["worker"]
        return worker["compat"]

    assert listed("") == []
    assert listed("cosmian") == ["cosmian"]
