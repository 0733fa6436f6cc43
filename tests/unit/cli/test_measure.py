"""``cloister measure`` on an installation made for the test."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.cli.measure import NATIVE_LIBRARY
from cloister.engine.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_SHA256
from cloister.errors import BuildError, ConfigurationError
from cloister.evidence.component import ComponentKind, configuration_digest
from cloister.verifier import reference_values
from support.installation import install, make_environment
from support.tiny_parts import write_adapter


@pytest.fixture
def python(tmp_path: Path) -> Path:
    python = make_environment(tmp_path / "venv")
    version = importlib.metadata.version(NATIVE_LIBRARY)
    install(python, NATIVE_LIBRARY, {f"{NATIVE_LIBRARY}/engine.so": "native"}, version=version)
    return python


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(build_app(["measure"]), [str(word) for word in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_reference_values_of_the_demo_model(python: Path, tmp_path: Path) -> None:
    run("measure", "--python", python, "-o", tmp_path / "values.json")
    values = reference_values.load_json((tmp_path / "values.json").read_bytes())
    found = {(entry.kind, entry.name): entry.digests for entry in values.components}
    assert found[ComponentKind.MODEL, DEMO_MODEL_NAME] == ("sha256:" + DEMO_MODEL_SHA256,)
    assert (ComponentKind.NATIVE, "engine.so") in found
    toml = run("measure", "--python", python, "--toml")
    assert reference_values.load_toml(toml.encode()) == values


def test_engine_options_change_the_configuration_alone(python: Path) -> None:
    plain = reference_values.load_json(run("measure", "--python", python).encode())
    options = (
        ["--parallel", "2"],
        ["--unsafe-without-sandbox"],
        ["--compat", "cosmian,triton"],
        ["--separation", "process-per-client"],
        ["--max-processes", "3"],
        ["--recycle-after", "10"],
        ["--recycle-idle", "10"],
        ["--recycle-age", "10"],
        ["--recycle-each"],
        ["--warm", "1"],
    )
    for option in options:
        other = reference_values.load_json(run("measure", "--python", python, *option).encode())
        differing = set(plain.components) ^ set(other.components)
        assert {entry.kind for entry in differing} == {ComponentKind.CONFIGURATION}, option


def test_several_models_and_their_files(python: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter.gguf")
    options = ("--model", "one=demo", "--model", "two=demo", "--adapter", f"three@two={adapter}")
    values = reference_values.load_json(run("measure", "--python", python, *options).encode())
    models = {
        (entry.kind, entry.name)
        for entry in values.components
        if entry.kind in (ComponentKind.MODEL, ComponentKind.MODEL_FILE)
    }
    assert models == {
        (ComponentKind.MODEL, "one"),
        (ComponentKind.MODEL, "two"),
        (ComponentKind.MODEL, "three"),
        (ComponentKind.MODEL_FILE, "three/model"),
        (ComponentKind.MODEL_FILE, "three/adapter"),
    }


def test_options_about_processes_that_cannot_be_met_are_refused(python: Path) -> None:
    run("measure", "--python", python, "--warm", "1", "--max-processes", "2")
    for options in (
        ("--warm", "2", "--max-processes", "2"),
        ("--separation", "none"),
        ("--recycle-each", "--recycle-after", "2"),
    ):
        with pytest.raises(ConfigurationError):
            run("measure", "--python", python, *options)


def test_each_request_can_have_a_process_of_its_own(python: Path) -> None:
    each = run("measure", "--python", python, "--recycle-each")
    assert each == run("measure", "--python", python, "--recycle-after", "1")
    assert each != run("measure", "--python", python)


def test_kernel_of_another_machine_can_be_named(python: Path) -> None:
    assert run("measure", "--python", python, "--landlock-abi", "0") != run(
        "measure", "--python", python, "--landlock-abi", "99"
    )


def test_configuration_from_a_file(python: Path, tmp_path: Path) -> None:
    given = {"debug": False, "anything": ["else"]}
    (tmp_path / "c.json").write_text(json.dumps(given))
    values = reference_values.load_json(
        run("measure", "--python", python, "--configuration", tmp_path / "c.json").encode()
    )
    digests = [
        entry.digests for entry in values.components if entry.kind is ComponentKind.CONFIGURATION
    ]
    assert digests == [(configuration_digest({"debug": False, "anything": ["else"]}),)]
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ConfigurationError):
        run("measure", "--python", python, "--configuration", tmp_path / "c.json")


def test_installation_with_another_engine_version_is_refused(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    install(python, NATIVE_LIBRARY, {f"{NATIVE_LIBRARY}/engine.so": "native"}, version="1")
    with pytest.raises(ConfigurationError, match="own `cloister measure`"):
        run("measure", "--python", python)


def test_installation_without_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no engine"):
        run("measure", "--python", make_environment(tmp_path / "venv"))
