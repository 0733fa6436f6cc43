"""Fixtures of the commands on files of evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli.main import main
from support.evidence_files import NITRO, Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CLOISTER_ENDORSEMENTS", str(tmp_path / "nothing kept"))

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return command


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the simulated vendor's root were pinned."""
    monkeypatch.setattr("cloister.endorsements.pinned.pinned_roots", lambda: NITRO.roots)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.cbor"
    path.write_bytes(NITRO.document(nonce=b"challenge", user_data=b"keys"))
    return path
