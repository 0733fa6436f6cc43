"""API keys: stored as keyed hashes, changed while the worker runs, never open by accident."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.errors import ConfigurationError
from cloister.worker.api_keys import ApiKeyFile, Gatekeeper, load_table
from cloister.worker.logs import EventLog


class Steady:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def gate(path: Path | None, steady: Steady, *, open_when_empty: bool = True) -> Gatekeeper:
    return Gatekeeper(
        path, open_when_empty=open_when_empty, steady=steady, log=EventLog(io.StringIO())
    )


def test_a_key_is_shown_once_and_stored_nowhere(tmp_path: Path) -> None:
    file = ApiKeyFile(tmp_path / "keys" / "keys.json")
    entry, key = file.add("ann", at=5)
    stored = (tmp_path / "keys" / "keys.json").read_text()
    assert key.startswith("clst_")
    assert len(key) == 5 + 43
    assert key not in stored
    assert key[5:] not in stored
    assert [one.name for one in file.entries()] == ["ann"]
    assert key not in repr(entry)
    assert (tmp_path / "keys" / "keys.json").stat().st_mode & 0o777 == 0o600
    assert entry.mac.hex() not in repr(entry)


def test_keys_open_and_others_do_not(tmp_path: Path) -> None:
    path, steady = tmp_path / "keys.json", Steady()
    file = ApiKeyFile(path)
    _, ann = file.add("ann", at=0)
    _, bob = file.add("bob", at=0)
    keeper = gate(path, steady)
    assert keeper.credential(ann.encode()) not in (None, b"", keeper.credential(bob.encode()))
    for wrong in (None, b"", b"clst_", ann[:-1].encode(), ann.encode() + b"x"):
        assert keeper.credential(wrong) is None
    assert len(keeper.credentials()) == 2


def test_the_hash_is_keyed_per_file(tmp_path: Path) -> None:
    one, two = ApiKeyFile(tmp_path / "1"), ApiKeyFile(tmp_path / "2")
    one.add("x", at=0)
    two.add("x", at=0)
    tables = load_table(tmp_path / "1"), load_table(tmp_path / "2")
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0].mac(b"same") != tables[1].mac(b"same")


@pytest.mark.parametrize("open_when_empty", [True, False])
def test_without_any_key_only_a_loopback_worker_is_open(
    tmp_path: Path, open_when_empty: bool
) -> None:
    keeper = gate(tmp_path / "none.json", Steady(), open_when_empty=open_when_empty)
    assert keeper.open is open_when_empty
    assert keeper.credential(None) == (b"" if open_when_empty else None)
    assert gate(None, Steady(), open_when_empty=open_when_empty).open is open_when_empty


def test_changes_are_noticed_while_it_runs(tmp_path: Path) -> None:
    path, steady = tmp_path / "keys.json", Steady()
    keeper = gate(path, steady)
    assert keeper.credential(None) == b""
    entry, key = ApiKeyFile(path).add("ann", at=0)
    steady.now += 1
    assert not keeper.open
    assert keeper.credential(key.encode()) is not None
    ApiKeyFile(path).revoke(entry.key_id, at=1)
    steady.now += 1
    assert keeper.credential(key.encode()) is None


@pytest.mark.parametrize("open_when_empty", [True, False])
def test_a_revoked_key_opens_nothing_while_it_runs(tmp_path: Path, open_when_empty: bool) -> None:
    path, steady = tmp_path / "keys.json", Steady()
    entry, key = ApiKeyFile(path).add("ann", at=0)
    keeper = gate(path, steady, open_when_empty=open_when_empty)
    assert keeper.credential(key.encode()) is not None
    _, second = ApiKeyFile(path).add("bob", at=0)
    ApiKeyFile(path).revoke(entry.key_id, at=1)
    steady.now += 1
    assert keeper.credential(key.encode()) is None
    assert keeper.credential(second.encode()) is not None


def test_a_table_that_cannot_be_read_closes_an_open_worker(tmp_path: Path) -> None:
    path, steady = tmp_path / "keys.json", Steady()
    keeper = gate(path, steady)
    assert keeper.credential(None) == b""
    _, key = ApiKeyFile(path).add("ann", at=0)
    path.chmod(0o644)
    steady.now += 1
    assert not keeper.open
    assert keeper.credential(None) is None
    assert keeper.credential(key.encode()) is None
    path.chmod(0o600)  # the operator notices: nothing but the mode has changed
    steady.now += 1
    assert keeper.credential(None) is None
    assert keeper.credential(key.encode()) is not None


def test_revoking_the_last_key_does_not_open_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    entry, _ = ApiKeyFile(path).add("ann", at=0)
    ApiKeyFile(path).revoke(entry.key_id, at=1)
    keeper = gate(path, Steady())
    assert not keeper.open
    assert keeper.credential(None) is None


@pytest.mark.parametrize("how", ["gone", "garbage", "readable by others"])
def test_a_table_that_becomes_unusable_leaves_the_last_one_in_force(
    tmp_path: Path, how: str
) -> None:
    path, steady = tmp_path / "keys.json", Steady()
    _, key = ApiKeyFile(path).add("ann", at=0)
    keeper = gate(path, steady)
    match how:
        case "gone":
            path.unlink()
        case "garbage":
            path.write_text("{}")
        case _:
            path.chmod(0o644)
            path.write_text(path.read_text() + " ")
    steady.now += 1
    assert not keeper.open
    assert keeper.credential(key.encode()) is not None
    assert keeper.credential(None) is None


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ApiKeyFile(path).add("ann", at=0)
    gate(path, Steady())
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as refused:
        gate(path, Steady())
    assert refused.value.code == "keys.permissions"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    ApiKeyFile(tmp_path / "real").add("ann", at=0)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError):
        load_table(tmp_path / "link")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"hash_key": "AA=="},
        {"hash_key": "!"},
        {"keys": [{"id": "x"}]},
        {"keys": [{"id": "x", "name": "x", "mac": "zz", "created": 0, "revoked": None}]},
        {"keys": [{"id": "x", "name": "x", "mac": "", "created": 1e999, "revoked": None}]},
    ],
)
def test_malformed_tables(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "keys.json"
    ApiKeyFile(path).add("ann", at=0)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document))
    assert load_table(path) is not None
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(ConfigurationError) as refused:
        load_table(path)
    assert refused.value.code == "keys.malformed"


@pytest.mark.parametrize("name", ["", "x" * 129, "two\nlines"])
def test_names_fit_on_a_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        ApiKeyFile(tmp_path / "keys.json").add(name, at=0)


def test_the_command_line(tmp_path: Path) -> None:
    app, file = build_app(["keys"]), ["--file", str(tmp_path / "keys.json")]
    run = CliRunner().invoke
    added = run(app, ["keys", "add", "ann", *file])
    assert added.exit_code == 0, added.output
    key = added.stdout.strip()
    listed = run(app, ["keys", "list", *file])
    assert "ann" in listed.stdout
    assert "in force" in listed.stdout
    assert key not in listed.stdout
    key_id = listed.stdout.split()[0]
    assert gate(tmp_path / "keys.json", Steady()).credential(key.encode()) is not None
    assert run(app, ["keys", "revoke", key_id, *file]).exit_code == 0
    assert "revoked" in run(app, ["keys", "list", *file]).stdout
    assert gate(tmp_path / "keys.json", Steady()).credential(key.encode()) is None
    again = run(app, ["keys", "revoke", key_id, *file])
    assert isinstance(again.exception, ConfigurationError)
