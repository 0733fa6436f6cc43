"""Where managed engines are found, and what of them is shown and measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloister.engine.command_lines import ManagedKind
from cloister.engine.installation import find_installation, restored
from cloister.errors import ConfigurationError
from support.stand_ins import VERSION, install


def test_an_environment_is_shown_with_the_interpreter_it_was_made_from(tmp_path: Path) -> None:
    found = install(ManagedKind.VLLM, tmp_path / "venv")
    base = Path(sys.base_prefix).resolve()
    expected = [tmp_path / "venv", *([] if base.is_relative_to("/usr") else [base])]
    assert list(found.roots) == expected
    assert found.version == VERSION
    assert found.words == (str(tmp_path / "venv" / "bin" / "vllm"),)
    assert sorted(found.measured) == [f"vllm/{at}" for at in range(len(expected))]


def test_what_is_said_of_it_does_not_tell_where_it_lies(tmp_path: Path) -> None:
    one = install(ManagedKind.VLLM, tmp_path / "one")
    other = install(ManagedKind.VLLM, tmp_path / "deeper" / "other")
    assert one.describe() == other.describe()
    assert one.describe()["program"] == "vllm/0:bin/vllm"
    assert str(tmp_path) not in str(one.describe())


@pytest.mark.parametrize("kind", list(ManagedKind))
def test_it_is_found_again_by_what_was_measured(tmp_path: Path, kind: ManagedKind) -> None:
    found = install(kind, tmp_path / "place")
    assert restored(kind, found.describe(), found.measured) == found


def test_a_program_outside_what_was_measured_is_not_run(tmp_path: Path) -> None:
    found = install(ManagedKind.VLLM, tmp_path / "venv")
    for program in ("vllm/0:../../etc/passwd", "vllm/9:bin/vllm", "other"):
        with pytest.raises((ValueError, KeyError)):
            restored(ManagedKind.VLLM, {**found.describe(), "program": program}, found.measured)


def test_a_program_of_the_systems_is_measured_by_itself() -> None:
    found = find_installation(ManagedKind.LLAMA_SERVER, program=Path("/usr/bin/true"))
    assert found.roots == ()
    assert dict(found.measured) == {"llama-server/program": Path("/usr/bin/true").resolve()}
    assert found.describe()["program"] == "llama-server/program"
    assert restored(ManagedKind.LLAMA_SERVER, found.describe(), found.measured) == found


def test_a_binary_brings_the_directory_it_lies_in_and_those_that_are_named(tmp_path: Path) -> None:
    place = tmp_path / "llama"
    (place / "bin").mkdir(parents=True)
    program = place / "bin" / "llama-server"
    program.touch()
    (tmp_path / "cuda").mkdir()
    found = find_installation(
        ManagedKind.LLAMA_SERVER, program=program, further=[tmp_path / "cuda", place / "bin"]
    )
    assert found.roots == (place / "bin", tmp_path / "cuda")


def test_triton_brings_its_own_tree(tmp_path: Path) -> None:
    found = install(ManagedKind.TRITON, tmp_path / "tritonserver")
    assert found.roots == (tmp_path / "tritonserver",)
    assert found.words == ("/usr/bin/python3", "-s", str(found.program))


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="vllm is not installed") as caught:
        find_installation(ManagedKind.VLLM, search_path=str(tmp_path))
    assert caught.value.code == "configuration.engine_missing"
    with pytest.raises(ConfigurationError, match="nowhere"):
        find_installation(ManagedKind.VLLM, program=tmp_path / "nowhere")
    (tmp_path / "vllm").touch(mode=0o755)
    (tmp_path / "vllm").chmod(0o755)
    assert find_installation(ManagedKind.VLLM, search_path=str(tmp_path)).roots == (tmp_path,)


@pytest.mark.parametrize("root", ["/", "/home", "/etc", "/root", "/var", "/proc", "/dev/shm"])
def test_a_directory_that_holds_more_than_an_engine_is_not_shown(tmp_path: Path, root: str) -> None:
    found = install(ManagedKind.VLLM, tmp_path / "venv")
    with pytest.raises(ConfigurationError, match="would have to see") as caught:
        find_installation(ManagedKind.VLLM, program=found.program, further=[Path(root)])
    assert caught.value.code == "configuration.engine_root"
