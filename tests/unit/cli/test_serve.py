"""``cloister serve``: what it refuses before anything is measured."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.cli.upstream_options import Upstream, to_accept, upstream_configuration
from cloister.errors import ConfigurationError
from cloister.evidence.component import ComponentKind
from cloister.testing.simulated_tpm import (
    SimulatedAttester,
    default_components,
    default_configuration,
)
from cloister.verifier.policy import development, load_json
from cloister.verifier.report import verify_report
from cloister.verifier.result import Finding
from cloister.worker.configuration import engine_descriptions


@pytest.mark.parametrize("named", ["option", "environment"])
def test_a_table_of_api_keys_that_is_not_there_is_refused(tmp_path: Path, named: str) -> None:
    missing = str(tmp_path / "keys.json")
    arguments = ["serve", "--state", str(tmp_path / "state")]
    # The variable that `cloister keys` reads: a key added there must not be left out here.
    environment = {"CLOISTER_API_KEYS": missing} if named == "environment" else {}
    if named == "option":
        arguments += ["--api-keys", missing]
    result = CliRunner().invoke(build_app(["serve"]), arguments, env=environment)
    assert isinstance(result.exception, ConfigurationError)
    assert result.exception.code == "configuration.api_keys"
    assert not (tmp_path / "state").exists()


def refused(arguments: list[str], state: Path) -> str:
    result = CliRunner().invoke(build_app(["serve"]), ["serve", "--state", str(state), *arguments])
    assert isinstance(result.exception, ConfigurationError)
    assert not state.exists()
    return result.exception.code


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model-name", "fake", "--upstream", "unix:/run/x.sock"], "configuration.upstream"),
        (["--model-name", "fake", "--model", "demo"], "configuration.upstream"),
        (["--model-name", "fake", "--unsafe-without-sandbox"], "configuration.upstream"),
        (["--model-name", "fake", "--context", "512"], "configuration.upstream"),
        (
            ["--model-name", "fake", "--separation", "process-per-client"],
            "configuration.separation",
        ),
        (["--model-name", "fake", "--upstream-serves", "files"], "configuration.upstream_paths"),
        ([], "configuration.upstream"),
    ],
)
def test_an_application_is_one_process_with_a_model_of_its_own(
    tmp_path: Path, arguments: list[str], code: str
) -> None:
    application = ["--asgi", "cloister.testing.fake_application:app"]
    assert refused([*application, *arguments], tmp_path / "state") == code


@pytest.mark.parametrize("option", [["--upstream-cache-salt"], ["--upstream-serves", "rerank"]])
def test_what_is_for_an_upstream_is_not_dropped_without_one(
    tmp_path: Path, option: list[str]
) -> None:
    assert refused(option, tmp_path / "state") == "configuration.upstream"


def test_what_an_application_is_stands_in_what_is_measured() -> None:
    configuration = upstream_configuration(
        Upstream(address="", application="a.b:app", name="m", cache_salt=True)
    )
    assert configuration["termination"] == "in-engine"
    assert configuration["managed"] is False
    (engine,) = engine_descriptions(configuration)
    assert (engine["application"], engine["prefix_cache"]) == ("a.b:app", "salted")


@pytest.mark.parametrize(
    ("upstream", "lines"),
    [
        (
            Upstream(address="", application="a.b:app", name="m", cache_salt=False),
            (
                "require_model = false",
                "require_managed = false",
                'isolation = ["none (in-engine)"]',
                'termination = ["in-engine"]',
            ),
        ),
        (
            Upstream(address="unix:/run/x.sock", name="m", cache_salt=False),
            (
                "require_model = false",
                "require_managed = false",
                'isolation = ["external (not proven)"]',
            ),
        ),
    ],
)
def test_operators_are_told_what_their_clients_have_to_accept(
    upstream: Upstream, lines: tuple[str, ...]
) -> None:
    """Just that: with these lines the worker is affirmed, and without one of them refused."""
    configuration = upstream_configuration(upstream)
    assert to_accept(configuration) == lines
    assert to_accept(default_configuration()) == ()
    now = datetime.now(UTC)
    components = [one for one in default_components() if one.kind is not ComponentKind.MODEL]
    worker = SimulatedAttester.make(now=now, components=components, configuration=configuration)
    changes = tomllib.loads("\n".join(lines))

    def verdict(members: dict[str, object]) -> Finding:
        policy = {**development().to_json(), **members}
        return verify_report(
            worker.report(bytes(32)),
            nonce=bytes(32),
            policy=load_json(json.dumps(policy).encode()),
            reference_values=worker.reference_values,
            roots=worker.roots,
            at=now,
        ).verdict

    assert verdict(changes) is Finding.AFFIRMING
    for left_out in changes:
        rest = {name: value for name, value in changes.items() if name != left_out}
        assert verdict(rest) is Finding.CONTRAINDICATED


@pytest.mark.parametrize(
    "option",
    [
        ("--model", "demo"),
        ("--model-sha256", "0" * 64),
        ("--adapter", "a=b"),
        ("--draft-model", "demo"),
        ("--projector", "demo"),
    ],
)
def test_an_upstream_has_a_model_of_its_own(tmp_path: Path, option: tuple[str, str]) -> None:
    upstream = ("--upstream", "http://127.0.0.1:9", "--model-name", "m")
    arguments = ["serve", "--state", str(tmp_path / "state"), *upstream, *option]
    result = CliRunner().invoke(build_app(["serve"]), arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert result.exception.code == "configuration.upstream"
    assert "not for it" in str(result.exception)
