"""``cloister manifest``: from nothing to a signed manifest, updates, and what stands in the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.cli.main import main
from cloister.cli.manifest_files import append_version, envelope_path
from cloister.errors import AuthenticationError
from cloister.manifest import Manifest, load_bundle
from cloister.manifest.model import read_manifest
from cloister.manifest.signing import KeySigner, envelope_of
from cloister.testing.signed_manifests import make_manifest, next_version, owners_of, sign_first
from cloister.verifier.platform_references import PlatformReference, ReferenceImage
from cloister.verifier.reference_values import ReferenceValues
from cloister.weights.header import About, Kind
from cloister.weights.reader import SealedFile
from cloister.weights.seal import seal
from support.manifests import ALICE, BOB, IMAGE
from support.tiny_gguf import write_tiny

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program in a folder of its own; the exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(["manifest", *words])
        assert isinstance(left.value.code, int)
        return left.value.code

    return run


@pytest.fixture
def begun(run: Run) -> Run:
    """With keys of Alice and Bob, and a draft that both own and one signs."""
    assert run("keygen", "alice") == 0
    assert run("keygen", "bob", "--algorithm", "ml-dsa-65") == 0
    owners = ("--owner", "alice=alice.pem", "--owner", "bob=bob.pem")
    assert run("init", "one.json", "--name", "acme/chat", *owners) == 0
    return run


def draft(name: str) -> Manifest:
    return read_manifest(Path(name).read_bytes())


def image_file(*, debug: bool = False) -> str:
    built = ReferenceImage(name="worker", version="7", debug=debug)
    reference = PlatformReference(
        platform="snp", name="worker 7", registers={"measurement": ("aa" * 48,)}, image=built
    )
    Path("image.json").write_text(ReferenceValues.from_platforms(reference).dump_json())
    return "image.json"


def test_from_nothing_to_a_signed_manifest(begun: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(Path("tiny.gguf"))
    assert begun("add-model", "one.json", "tiny.gguf", "--name", "tiny") == 0
    assert begun("add-image", "one.json", image_file()) == 0
    assert "WARNING" not in capsys.readouterr().err
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "bundle.json") == 0
    told = capsys.readouterr().out
    assert "acme/chat, version 1" in told
    assert "signed by alice (ed25519" in told
    signed = load_bundle(Path("bundle.json").read_bytes())
    assert [one.name for one in signed.manifest.models] == ["tiny"]
    assert [(one.name, one.version) for one in signed.manifest.images] == [("worker", "7")]
    assert signed.digest in told
    assert begun("verify", "bundle.json", "--signer", "alice.pem") == 0
    assert begun("verify", "bundle.json", "--signer", "bob.pem") == 1
    assert begun("verify", "bundle.json", "--signer", "alice.pem", "--min-version", "2") == 1
    capsys.readouterr()
    assert begun("verify", "bundle.json") == 0
    assert "Nobody you named signed it" in capsys.readouterr().err


def test_keys_are_written_once_and_the_secret_one_for_its_owner_only(begun: Run) -> None:
    assert Path("alice.key.pem").stat().st_mode & 0o777 == 0o600
    secret = Path("alice.key.pem").read_bytes()
    assert begun("keygen", "alice") == 2
    assert Path("alice.key.pem").read_bytes() == secret
    assert begun("keygen", "eve", "--algorithm", "rsa") == 2


def test_an_encrypted_key_needs_its_password(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_KEY_PASSWORD", "correct horse")
    assert begun("keygen", "carol") == 0
    assert b"ENCRYPTED" in Path("carol.key.pem").read_bytes()
    assert begun("init", "two.json", "--name", "x", "--owner", "carol=carol.pem") == 0
    sign = ("sign", "two.json", "--key", "carol.key.pem", "--bundle", "two.bundle.json")
    monkeypatch.setenv("CLOISTER_KEY_PASSWORD", "wrong")
    assert begun(*sign) == 2
    monkeypatch.delenv("CLOISTER_KEY_PASSWORD")
    assert begun(*sign) == 2
    monkeypatch.setenv("CLOISTER_KEY_PASSWORD", "correct horse")
    assert begun(*sign) == 0


def test_reference_values_that_no_build_made_are_warned_of(
    begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("measured.json").write_text(IMAGE.reference_values.dump_json())
    assert begun("add-image", "one.json", "measured.json") == 2
    assert begun("add-image", "one.json", "measured.json", "--name", "a", "--version", "1") == 0
    assert "WARNING" in capsys.readouterr().err
    assert [one.name for one in draft("one.json").images] == ["a"]


def test_an_image_for_debugging_is_called_that(
    begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun("add-image", "one.json", image_file(debug=True)) == 0
    assert "FOR DEBUGGING" in capsys.readouterr().err
    assert draft("one.json").images[0].debug


def test_images_and_models_are_replaced_only_when_told(begun: Run) -> None:
    write_tiny(Path("tiny.gguf"))
    model = ("add-model", "one.json", "tiny.gguf", "--name", "tiny")
    image = ("add-image", "one.json", image_file())
    assert begun(*model) == 0
    assert begun(*image) == 0
    assert begun(*model) == 2
    assert begun(*image) == 2
    assert begun(*model, "--replace") == 0
    assert begun(*image, "--replace") == 0
    assert (len(draft("one.json").models), len(draft("one.json").images)) == (1, 1)


def test_sealed_weights_are_listed_with_their_key(begun: Run) -> None:
    write_tiny(Path("tiny.gguf"))
    seal(
        {"tiny.gguf": Path("tiny.gguf")},
        Path("tiny.sealed"),
        kind=Kind.GGUF,
        about=About(name="tiny"),
        keep_key=lambda _key: None,
    )
    assert begun("add-model", "one.json", "tiny.sealed") == 2
    assert begun("add-model", "one.json", "tiny.gguf", "--key", "kbs:///a/b/c") == 2
    assert begun("add-model", "one.json", "tiny.sealed", "--key", "kbs:///a/../c") == 2
    assert begun("add-model", "one.json", "tiny.sealed", "--key", "kbs:///a/b/c") == 0
    (model,) = draft("one.json").models
    assert model.sealed is not None
    assert model.sealed.key == "kbs:///a/b/c"
    with SealedFile(Path("tiny.sealed")) as file:
        assert model.sealed.header_sha256 == file.header.sha256
        assert model.sha256 == file.header.model_sha256


def test_several_owners_sign_one_after_the_other(
    begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    owners = ("--owner", "alice=alice.pem", "--owner", "bob=bob.pem", "--threshold", "2")
    assert begun("init", "both.json", "--name", "acme/both", *owners) == 0
    assert begun("sign", "both.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert "have to be 2" in capsys.readouterr().err
    assert not Path("b.json").exists()
    pending = envelope_path(Path("both.json"))
    assert pending.exists()
    assert begun("sign", "both.json", "--key", "bob.key.pem", "--bundle", "b.json") == 0
    assert not pending.exists()
    signed = load_bundle(Path("b.json").read_bytes())
    assert len(signed.links[0].envelope.signatures) == 2


def test_a_draft_changed_after_somebody_signed_it_is_refused(begun: Run) -> None:
    owners = ("--owner", "alice=alice.pem", "--owner", "bob=bob.pem", "--threshold", "2")
    assert begun("init", "both.json", "--name", "acme/both", *owners) == 0
    assert begun("sign", "both.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("add-image", "both.json", image_file()) == 0
    assert begun("sign", "both.json", "--key", "bob.key.pem", "--bundle", "b.json") == 2
    assert not Path("b.json").exists()


def test_who_owns_nothing_signs_nothing(begun: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert begun("keygen", "mallory") == 0
    assert begun("sign", "one.json", "--key", "mallory.key.pem", "--bundle", "b.json") == 2
    assert "nobody who owns" in capsys.readouterr().err
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0


def test_an_update_begins_like_the_version_before(
    begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("init", "two.json", "--after", "b.json", "--engine", "llama.cpp=1") == 0
    first, second = draft("one.json"), draft("two.json")
    assert (second.header.version, second.header.previous) == (2, first.digest)
    assert second.header.owners == first.header.owners
    assert begun("sign", "two.json", "--key", "bob.key.pem", "--bundle", "b.json") == 0
    assert load_bundle(Path("b.json").read_bytes()).version == 2
    capsys.readouterr()
    assert begun("diff", "b.json") == 1
    assert "+ engine llama.cpp 1" in capsys.readouterr().out
    assert begun("diff", "one.json", "b.json") == 1
    assert begun("diff", "b.json", "b.json") == 0
    capsys.readouterr()
    assert begun("history", "b.json") == 0
    told = capsys.readouterr().out
    assert "version 1" in told
    assert "version 2" in told
    assert "signed by alice" in told
    assert "signed by bob" in told
    assert "+ engine llama.cpp 1" in told


def test_an_overlap_is_of_one_update_only(begun: Run) -> None:
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("init", "two.json", "--after", "b.json", "--overlap", "48") == 0
    header = draft("two.json").header
    assert header.overlap_until == header.issued + timedelta(hours=48)
    assert begun("sign", "two.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("init", "three.json", "--after", "b.json") == 0
    assert draft("three.json").header.overlap_until is None
    for words in (
        ("x.json", "--after", "b.json", "--overlap", str(32 * 24)),
        ("x.json", "--name", "a/b", "--owner", "alice=alice.pem", "--overlap", "1"),
    ):
        assert begun("init", *words) == 2
        assert not Path("x.json").exists()


def test_owners_hand_over(begun: Run) -> None:
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("keygen", "carol") == 0
    assert begun("init", "two.json", "--after", "b.json", "--owner", "carol=carol.pem") == 0
    assert begun("sign", "two.json", "--key", "carol.key.pem", "--bundle", "b.json") == 0
    assert load_bundle(Path("b.json").read_bytes()).version == 1, "nobody handed over yet"
    assert begun("sign", "two.json", "--key", "bob.key.pem", "--bundle", "b.json") == 0
    assert load_bundle(Path("b.json").read_bytes()).version == 2
    assert begun("verify", "b.json", "--signer", "carol.pem") == 0
    assert begun("verify", "b.json", "--signer", "alice.pem") == 0
    assert begun("init", "three.json", "--after", "b.json") == 0
    assert begun("sign", "three.json", "--key", "alice.key.pem", "--bundle", "b.json") == 2


def test_of_two_updates_of_one_version_the_second_is_told(
    begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun("sign", "one.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    assert begun("init", "a.json", "--after", "b.json", "--engine", "llama.cpp=1") == 0
    assert begun("init", "z.json", "--after", "b.json", "--engine", "llama.cpp=2") == 0
    assert begun("sign", "a.json", "--key", "alice.key.pem", "--bundle", "b.json") == 0
    won = Path("b.json").read_bytes()
    capsys.readouterr()
    assert begun("sign", "z.json", "--key", "bob.key.pem", "--bundle", "b.json") == 1
    told = capsys.readouterr().err
    assert "manifest.conflict" in told
    assert "somebody else updated the manifest" in told
    assert Path("b.json").read_bytes() == won
    assert not envelope_path(Path("z.json")).exists()


def test_of_many_updates_at_once_one_wins(tmp_path: Path) -> None:
    """All of them signed well, and none knows of the others."""
    path = tmp_path / "b.json"
    signed = sign_first(make_manifest(owners=[ALICE, BOB]), ALICE)
    path.write_bytes(signed.encode())
    found: list[str] = []

    def update(signer: KeySigner, number: int) -> None:
        made = next_version(signed, owners=owners_of([ALICE, BOB]), models=())
        made = read_manifest(
            json.dumps({**made.to_json(), "policy": {"required_gpus": number}}).encode()
        )
        envelope = envelope_of(made, signer)
        try:
            append_version(path, envelope, at=datetime.now(UTC), identities=None)
            found.append("won")
        except AuthenticationError as error:
            found.append(error.code)

    threads = [
        threading.Thread(target=update, args=(signer, number + 1))
        for number, signer in enumerate([ALICE, BOB] * 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["manifest.conflict"] * 7 + ["won"]
    assert load_bundle(path.read_bytes()).version == 2


def test_what_is_signed_elsewhere_is_the_canonical_form(begun: Run) -> None:
    assert begun("payload", "one.json", "--output", "one.payload") == 0
    assert Path("one.payload").read_bytes() == draft("one.json").encode()


@pytest.mark.parametrize(
    "words",
    [
        ("init", "x.json"),
        ("init", "x.json", "--name", "x"),
        ("init", "x.json", "--name", "x", "--owner", "alice"),
        ("init", "x.json", "--name", "x", "--owner", "alice=missing.pem"),
        ("init", "x.json", "--name", "x", "--owner", "a=alice.pem", "--threshold", "2"),
        ("init", "x.json", "--name", "x", "--owner", "a=alice.pem", "--days", "999"),
        ("init", "x.json", "--name", "x", "--owner", "a=alice.pem", "--engine", "llama.cpp"),
        ("init", "one.json", "--name", "x", "--owner", "a=alice.pem"),
        ("init", "x.json", "--after", "one.json"),
        ("sign", "one.json", "--bundle", "b.json"),
        ("sign", "alice.pem", "--key", "alice.key.pem", "--bundle", "b.json"),
        ("sign", "one.json", "--key", "alice.pem", "--bundle", "b.json"),
        ("verify", "one.json"),
        ("diff", "alice.pem", "one.json"),
        ("add-image", "one.json", "alice.pem"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told(begun: Run, words: tuple[str, ...]) -> None:
    before = Path("one.json").read_bytes()
    assert begun(*words) == 2
    assert not Path("x.json").exists()
    assert not Path("b.json").exists()
    assert Path("one.json").read_bytes() == before
