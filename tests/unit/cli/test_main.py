"""The program itself: what it does when no command is named."""

from __future__ import annotations

import importlib.metadata

import pytest

from cloister.cli.main import main


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
