"""``cloister serve``: what it refuses before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.errors import ConfigurationError


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
