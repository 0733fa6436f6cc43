"""What a client remembers never goes back, and is never forgotten in silence."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.client.manifest_memory import (
    FileMemory,
    ManifestMemory,
    ProcessMemory,
    default_path,
)
from cloister.errors import AuthenticationError, ConfigurationError
from cloister.manifest.pin import Overlap, Remembered

PIN, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
TWO = Remembered(version=2, sha256="a" * 64)


def at(version: int, letter: str = "a") -> Remembered:
    return Remembered(version=version, sha256=letter * 64)


@pytest.fixture(params=["file", "process"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> ManifestMemory:
    return FileMemory(tmp_path / "deep" / "m.json") if request.param == "file" else ProcessMemory()


def test_what_was_accepted_is_remembered(memory: ManifestMemory) -> None:
    assert memory.recall(PIN) is None
    memory.remember(PIN, TWO)
    assert memory.recall(PIN) == TWO
    assert memory.recall(OTHER) is None
    memory.remember(PIN, TWO)
    memory.remember(PIN, at(5))
    memory.remember(OTHER, at(1))
    assert (memory.recall(PIN), memory.recall(OTHER)) == (at(5), at(1))


@pytest.mark.parametrize(
    ("accepted", "code"), [(at(1), "manifest.rollback"), (at(2, "b"), "manifest.fork")]
)
def test_who_accepted_another_one_at_the_same_time_is_told(
    memory: ManifestMemory, accepted: Remembered, code: str
) -> None:
    memory.remember(PIN, TWO)
    with pytest.raises(AuthenticationError) as refused:
        memory.remember(PIN, accepted)
    assert refused.value.code == code
    assert memory.recall(PIN) == TWO


def test_an_overlap_is_remembered_with_the_version_that_grants_it(memory: ManifestMemory) -> None:
    overlap = Overlap(sha256="b" * 64, until=datetime(2026, 12, 1, 18, tzinfo=UTC))
    memory.remember(PIN, dataclasses.replace(TWO, overlap=overlap))
    kept = memory.recall(PIN)
    assert kept == TWO
    assert kept.overlap == overlap
    memory.remember(PIN, at(3))
    kept = memory.recall(PIN)
    assert kept == at(3)
    assert kept.overlap is None


def test_another_process_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    FileMemory(path).remember(PIN, TWO)
    assert FileMemory(path).recall(PIN) == TWO
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"format":"cloister/manifest-memory/2","pins":{}}',
        b'{"format":"cloister/manifest-memory/1","pins":{"a":{"version":0,"sha256":""}}}',
        b'{"format":"cloister/manifest-memory/1","pins":{"a":{"version":2,"sha256":"%s",'
        b'"overlap":{"sha256":"%s","until":"soon"}}}}' % (b"a" * 64, b"b" * 64),
    ],
)
def test_a_damaged_memory_is_no_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    memory = FileMemory(path)
    memory.remember(PIN, TWO)
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        memory.recall(PIN)
    assert refused.value.code == "manifest.memory"
    with pytest.raises(ConfigurationError):
        memory.remember(PIN, at(9))
    assert path.read_bytes() == content
    path.write_bytes(whole)
    assert memory.recall(PIN) == TWO


def test_a_memory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    memory = FileMemory(path)
    memory.remember(PIN, TWO)
    path.chmod(0o660)
    with pytest.raises(ConfigurationError, match="others may write"):
        memory.recall(PIN)


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = FileMemory(tmp_path / "file" / "m.json")
    with pytest.raises(ConfigurationError, match="--manifest-memory") as refused:
        memory.remember(PIN, TWO)
    assert refused.value.code == "manifest.memory"


def test_a_crash_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.json"
    memory = FileMemory(path)
    memory.remember(PIN, TWO)

    def crash(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloister.client.locked_file.os.fsync", crash)
    with pytest.raises(ConfigurationError):
        memory.remember(PIN, at(3))
    assert FileMemory(path).recall(PIN) == TWO
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.json", "m.json.lock"]


def test_of_many_at_once_the_highest_stays(tmp_path: Path) -> None:
    memory = FileMemory(tmp_path / "m.json")
    refused: list[str] = []

    def accept(version: int) -> None:
        try:
            memory.remember(PIN, at(version))
        except AuthenticationError as error:
            refused.append(error.code)

    threads = [threading.Thread(target=accept, args=(version,)) for version in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.recall(PIN) == at(12)
    assert set(refused) <= {"manifest.rollback"}
    assert json.loads((tmp_path / "m.json").read_text())["pins"].keys() == {PIN}


def test_it_lies_in_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "cloister" / "manifests.json"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "state" / "cloister" / "manifests.json"
