"""The program itself: what it does when no command is named."""

from __future__ import annotations

import errno
import importlib.metadata
from pathlib import Path

import pytest

from cloister.cli.main import guard, main


def test_the_version_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"cloister {importlib.metadata.version('cloister')}\n"


def test_an_unknown_option_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--no-such-option"])
    assert left.value.code == 2
    assert "no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("names", [(), ("image/root.img",), ("image/a", "image/b")])
def test_what_the_system_says_of_a_file_is_one_sentence(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        first, second = (*names, None, None)[:2]
        raise OSError(errno.ENOSPC, "No space left on device", first, None, second)

    assert guard(run) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(name in said for name in ("No space left", "[system.file]", *names))


def test_a_file_in_the_place_of_a_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert guard((tmp_path / "taken" / "folder").mkdir) == 2
    assert str(tmp_path / "taken" / "folder") in capsys.readouterr().err


def test_a_fault_of_our_own_shows() -> None:
    def run() -> None:
        raise OSError("nothing that the system says")

    with pytest.raises(OSError, match="nothing"):
        guard(run)
