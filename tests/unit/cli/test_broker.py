"""``cloister broker``: from an empty database to a verified audit log."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.database import Database
from cloister.broker.desk import Desk
from cloister.broker.root_keys.places import open_root_key
from cloister.broker.serve import Service
from cloister.broker.store import Store
from cloister.cli.main import main
from cloister.errors import AuthenticationError
from cloister.manifest import SigstoreOwner
from support.broker import WEIGHTS, Bench, Clock, simulated

VECTORS = Path(__file__).parents[2] / "vectors"
URI = str(WEIGHTS)
POLICY = 'appraisal = "development"\nmanifest = "unchecked"\nmodels = "unchecked"\n'
POLICY += "stock_clients = false\n"


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOISTER_BROKER_STORE", f"sqlite:///{tmp_path / 'broker.db'}")
    monkeypatch.setenv("CLOISTER_BROKER_ROOT_KEY", f"development-file:{tmp_path / 'root.key'}")
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["broker", *words])
    return left.value.code if isinstance(left.value.code, int) else 1


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(*words) == 0
    return capsys.readouterr().out


def test_a_secret_s_life(broker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = said(capsys, "init").strip()
    assert identity.startswith("ed25519:")
    assert said(capsys, "identity").strip() == identity
    assert run("upgrade") == 2, "it is of this format"
    assert "this version's format" in capsys.readouterr().err
    assert "released to nobody" in said(capsys, "secret", "put", URI, "--generate", "32")
    (broker / "policy.toml").write_text(POLICY)
    (broker / "values.json").write_text(simulated().reference_values.dump_json())
    policy = str(broker / "policy.toml")
    assert run("policy", "set", URI, policy) == 2
    values = ("--reference-values", str(broker / "values.json"))
    assert run("policy", "set", URI, policy, *values) == 0
    assert "development platforms get this secret" in capsys.readouterr().err
    assert '"stock_clients": false' in said(capsys, "policy", "show", URI)
    assert "version 2" in said(capsys, "rotate", URI, "--generate", "32", "--overlap", "5")
    assert f"{URI}  version 2" in said(capsys, "secret", "list")
    assert run("revoke", "worker", "sha256:" + "9" * 64, "--reason", "a test") == 0
    assert "revoked" in said(capsys, "audit", "show")
    first, second = str(broker / "first.jsonl"), str(broker / "second.jsonl")
    assert run("audit", "export", "--out", first) == 0
    assert run("rotate", URI, "--generate", "16") == 0
    assert run("audit", "export", "--out", second) == 0
    assert "7 entries" not in said(capsys, "audit", "verify", first, "--identity", identity)
    with_since = ("audit", "verify", second, "--identity", identity, "--since", first)
    assert "whole" in said(capsys, *with_since)
    assert run("audit", "verify", first, "--identity", identity, "--since", second) == 1
    assert run("audit", "verify", first, "--identity", "ed25519:" + "0" * 64) == 1
    Path(second).write_bytes(Path(second).read_bytes().replace(b"a test", b"no test"))
    assert run("audit", "verify", second, "--identity", identity) == 1


def test_a_secret_comes_from_a_file_or_from_standard_input(
    broker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("init") == 0
    (broker / "key").write_bytes(b"from a file")
    assert run("secret", "put", URI, "--file", str(broker / "key")) == 0
    fed: Any = type("Fed", (), {"buffer": io.BytesIO(b"from standard input")})
    monkeypatch.setattr("sys.stdin", fed)
    assert run("rotate", URI, "--file", "-") == 0
    database = Database.open(f"sqlite:///{broker / 'broker.db'}")
    root = open_root_key(f"development-file:{broker / 'root.key'}")
    clock = Clock()
    clock.now = 4_000_000_000.0
    store = Store.open(database, root, now=clock)
    at = Bench(store=store, desk=Desk(store, roots=simulated().roots), clock=clock,
               attester=simulated())  # fmt: skip
    with store.database.reading() as connection:
        kept = [store.version(WEIGHTS, number, connection) for number in (1, 2)]
    opened = [store.open_version(WEIGHTS, one) for one in kept if one is not None]
    assert opened == [b"from a file", b"from standard input"]
    assert at.log()[0]["event"] == "store.created"
    database.close()


MISTAKES = [
    ("secret", "put", URI),
    ("secret", "put", URI, "--file", "/none", "--generate", "32"),
    ("secret", "put", URI, "--file", "/nowhere/at/all"),
    ("secret", "put", "kbs:///a/../b", "--generate", "32"),
    ("rotate", URI, "--generate", "32"),
    ("policy", "show", URI),
    ("policy", "set", URI, "/nowhere/at/all"),
    ("revoke", "everything", "x", "--reason", "y"),
    ("serve", "--stock-clients", "yes"),
    ("serve", "--host", "nowhere"),
    ("serve", "--platform", "nothing"),
    ("serve", "--sigstore-root", "/nowhere/at/all"),
]


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_said_and_change_nothing(
    broker: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run("init") == 0
    before = said(capsys, "audit", "show")
    assert run(*words) != 0
    assert "cloister: " in capsys.readouterr().err
    assert said(capsys, "audit", "show") == before
    assert run("secret", "put", "kbs:///a/b/c", "--generate", "32") == 0


@pytest.mark.skipif(
    importlib.util.find_spec("sigstore") is None,
    reason="Sigstore's library is not installed (cloister[sigstore])",
)
@pytest.mark.usefixtures("broker")
def test_a_trusted_root_of_sigstores_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bundle that one of Sigstore's instances made (tests/vectors/sigstore)."""
    vector = json.loads((VECTORS / "sigstore" / "staging.json").read_text())
    root = tmp_path / "root.json"
    root.write_text(json.dumps(vector["trusted_root"]))
    services: list[Service] = []
    monkeypatch.setattr(
        "cloister.broker.serve.run", lambda _store, service, **_: services.append(service)
    )
    assert run("init") == 0
    assert run("serve", "--sigstore-root", str(root)) == 0
    assert run("serve") == 0
    with_root, without = services
    assert without.identities is None
    assert with_root.identities is not None
    owner = SigstoreOwner(name="them", subject=vector["identity"], issuer=vector["issuer"])
    bundle = json.dumps(vector["bundle"]).encode()
    artefact = base64.b64decode(vector["artefact_b64"])
    with_root.identities.verify(owner, bundle, artefact)
    with pytest.raises(AuthenticationError):
        with_root.identities.verify(owner, bundle, artefact + b"x")


def test_nothing_works_without_a_store_or_its_root_key(
    broker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("secret", "list") == 2
    assert run("init") == 0
    assert run("init") == 2
    assert run("secret", "list") == 0
    monkeypatch.setenv("CLOISTER_BROKER_ROOT_KEY", f"development-file:{broker / 'other.key'}")
    assert run("secret", "list") == 2
    monkeypatch.setenv("CLOISTER_BROKER_ROOT_KEY", "vault")
    assert run("secret", "list") == 2
