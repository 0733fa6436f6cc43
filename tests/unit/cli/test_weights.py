"""``cloister weights``: seal, verify and open, and that the key goes to its file alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from cloister.cli.main import main
from cloister.engine.demo_model import demo_model_path
from cloister.manifest import ModelEntry, SealedWeights
from cloister.manifest.model import read_manifest
from cloister.strictjson import canonical
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.weights.header import Header
from cloister.weights.reader import SealedFile
from support.manifests import ALICE
from support.tiny_gguf import write_tiny

VECTORS = Path(__file__).parents[2] / "vectors" / "model_signing"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["weights", *map(str, arguments)])
    assert isinstance(left.value.code, int)
    return left.value.code


def header_of(path: Path) -> Header:
    with SealedFile(path) as sealed:
        return sealed.header


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("made") / "tiny.gguf")


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "tiny.gguf"))


def test_seal_verify_and_open(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("seal", tiny) == 0
    sealed, key = tmp_path / "tiny.gguf.sealed", tmp_path / "tiny.gguf.sealed.key"
    secret = key.read_bytes()
    assert len(secret) == 32
    assert key.stat().st_mode & 0o777 == 0o600
    assert run("verify", sealed, "--header-sha256", header_of(sealed).sha256) == 0
    assert "NOT CHECKED" in capfd.readouterr().out
    assert run("verify", sealed, "--key", key) == 0
    assert run("open", sealed, "--key", key, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "tiny.gguf").read_bytes() == tiny.read_bytes()
    said = capfd.readouterr()
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert f"sha256:{digest}" in said.out
    assert "NOT CHECKED" not in said.out
    for form in (secret.hex(), repr(secret)[2:-1]):
        assert form not in said.out + said.err


def test_what_is_there_is_never_written_over(tiny: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"mine")
    assert run("seal", tiny, "--key", key) == 2
    assert key.read_bytes() == b"mine"
    assert not (tmp_path / "tiny.gguf.sealed").exists()
    assert run("seal", tiny) == 0
    before = (tmp_path / "tiny.gguf.sealed").read_bytes()
    assert run("seal", tiny, "--key", tmp_path / "other") == 2
    assert (tmp_path / "tiny.gguf.sealed").read_bytes() == before
    assert not (tmp_path / "other").exists()
    assert run("open", tmp_path / "tiny.gguf.sealed", "--key", tmp_path / "tiny.gguf.sealed.key",
               "--out", tmp_path) == 2  # fmt: skip


def test_keys_that_others_read_or_that_are_none_are_refused(tiny: Path, tmp_path: Path) -> None:
    assert run("seal", tiny) == 0
    sealed, key = tmp_path / "tiny.gguf.sealed", tmp_path / "tiny.gguf.sealed.key"
    assert run("verify", sealed, "--key", key) == 0
    key.chmod(0o640)
    assert run("verify", sealed, "--key", key) == 2
    key.chmod(0o600)
    key.write_bytes(key.read_bytes() + b"\n")
    assert run("verify", sealed, "--key", key) == 2
    os.truncate(key, 31)
    assert run("verify", sealed, "--key", key) == 2
    key.write_bytes(bytes(32))
    assert run("verify", sealed, "--key", key) == 1
    assert run("verify", sealed, "--key", tmp_path / "missing") == 2


def test_altered_weights_are_refused_and_leave_nothing(tiny: Path, tmp_path: Path) -> None:
    assert run("seal", tiny) == 0
    sealed, key = tmp_path / "tiny.gguf.sealed", tmp_path / "tiny.gguf.sealed.key"
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    assert run("verify", sealed) == 0  # the header is whole; it says that no more was checked
    assert run("verify", sealed, "--key", key) == 1
    assert run("open", sealed, "--key", key, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    sealed.write_bytes(data[:-1])
    assert run("verify", sealed) == 1


def test_a_manifest_has_to_list_them(tiny: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    bundle, draft = tmp_path / "bundle.json", tmp_path / "draft.json"

    def write(sha256: str, header_sha256: str | None = None) -> None:
        sealed = header_sha256 and SealedWeights(key="kbs:///a/b/c", header_sha256=header_sha256)
        entry = ModelEntry(name="tiny", format="gguf", sha256=sha256, sealed=sealed or None)
        manifest = make_manifest(owners=[ALICE], models=[entry])
        draft.write_bytes(json.dumps(manifest.to_json(), indent=1).encode())
        bundle.write_bytes(sign_first(manifest, ALICE).encode())

    write("0" * 64)
    for manifest in (bundle, draft):
        assert run("seal", tiny, "--for", manifest) == 2
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".gguf", ".json", ".json"]
    write(digest)
    assert run("seal", tiny, "--for", draft) == 0
    sealed = tmp_path / "tiny.gguf.sealed"
    assert run("verify", sealed, "--for", bundle) == 2
    write(digest, "0" * 64)
    assert run("verify", sealed, "--for", bundle) == 2
    write(digest, header_of(sealed).sha256)
    assert run("verify", sealed, "--for", bundle) == 0
    assert run("verify", sealed, "--for", draft) == 0
    assert run("verify", sealed, "--header-sha256", "0" * 64) == 1
    (tmp_path / "none.json").write_bytes(canonical({}))
    assert run("verify", sealed, "--for", tmp_path / "none.json") == 1


def steps_said(error: str) -> list[list[str]]:
    """The commands that `seal` ends with, their words; the owner chose an address for the key."""
    lines = [line for line in error.splitlines() if line.startswith("  cloister ")]
    return [shlex.split(line.replace("REPOSITORY/TYPE/TAG", "acme/weights/tiny")) for line in lines]


@pytest.mark.parametrize("signed", [False, True], ids=["draft", "signed"])
def test_what_seal_says_makes_the_manifest_name_the_sealed_weights(
    signed: bool,
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    plain = [
        ModelEntry(name=name, format="gguf", sha256=sha256)
        for name, sha256 in (("our chat", digest), ("another", "0" * 64))
    ]
    manifest = make_manifest(owners=[ALICE], models=plain)
    given, draft = tmp_path / "the manifest.json", tmp_path / "the manifest.json"
    if signed:
        draft = tmp_path / "next.json"
        given.write_bytes(sign_first(manifest, ALICE).encode())
    else:
        given.write_bytes(json.dumps(manifest.to_json()).encode())
    assert run("seal", tiny, "--for", given) == 0
    sealed = tmp_path / "tiny.gguf.sealed"
    assert run("verify", sealed, "--for", given) == 2
    put, *others = steps_said(capfd.readouterr().err)
    key = "kbs:///acme/weights/tiny"
    assert put[1:] == ["broker", "secret", "put", key, "--file", f"{sealed}.key"]
    for words in others:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(words[1:])
    assert run("verify", sealed, "--for", draft) == 0
    models = {one.name: one for one in read_manifest(draft.read_bytes()).models}
    assert models == {
        "another": plain[1],
        "our chat": dataclasses.replace(
            plain[0], sealed=SealedWeights(key=key, header_sha256=header_of(sealed).sha256)
        ),
    }


def test_without_a_manifest_seal_says_how_one_comes_to_list_the_weights(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draft = tmp_path / "draft.json"
    draft.write_bytes(json.dumps(make_manifest(owners=[ALICE], models=[]).to_json()).encode())
    assert run("seal", tiny) == 0
    _, add = steps_said(capfd.readouterr().err)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([str(draft) if word == "DRAFT" else word for word in add[1:]])
    assert run("verify", tmp_path / "tiny.gguf.sealed", "--for", draft) == 0


def test_a_named_signer_has_to_have_signed_them(tmp_path: Path) -> None:
    model = tmp_path / "demo.gguf"
    shutil.copy(demo_model_path(), model)
    signer, signature = VECTORS / "signer.pem", VECTORS / "file.sig.json"
    assert run("seal", model, "--signature", signature) == 2
    assert run("seal", model, "--signer", signer) == 2
    # Authentic, and over other files.
    assert run("seal", model, "--signature", signature, "--signer", signer) == 1
    assert list(tmp_path.iterdir()) == [model]
    assert run("seal", model) == 0


def test_what_is_no_model_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not GGUF")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.py").write_text("import os")
    assert run("seal", tmp_path / "x.gguf") == 1
    assert run("seal", tmp_path / "folder") == 2
    assert run("seal", tmp_path / "missing") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.gguf"]
