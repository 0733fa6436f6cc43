"""``cloister image build``: what it refuses before it begins, and what a check says of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli.image_build import beside
from cloister.cli.image_provenance import check_signed, provenance_signer
from cloister.cli.main import main
from cloister.errors import AuthenticationError, BuildError, ConfigurationError
from cloister.image.bill import PAYLOAD_TYPE
from cloister.manifest.dsse import Envelope
from cloister.manifest.signing import KeySigner, add_signature, generate_pem, load_private_key
from cloister.strictjson import canonical

IMAGE = """
configuration = 1
name = "demo"
version = "1"
[[model]]
name = "demo"
file = "demo"
[network]
listen = [8440]
"""
STATEMENT = b'{"about": "this image"}\n'


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    for name in ("builder", "other"):
        private, public = generate_pem("ed25519")
        (tmp_path / f"{name}.key.pem").write_bytes(private)
        (tmp_path / f"{name}.pem").write_bytes(public)
    return tmp_path


def test_a_signature_is_by_a_key_and_about_a_build(keys: Path) -> None:
    signed = keys / "provenance.dsse.json"
    signed.write_bytes(provenance_signer(keys / "builder.key.pem")(STATEMENT))
    check_signed(signed, STATEMENT, None)
    check_signed(signed, STATEMENT, keys / "builder.pem")
    with pytest.raises(AuthenticationError) as caught:
        check_signed(signed, STATEMENT, keys / "other.pem")
    assert caught.value.code == "image.signature"
    with pytest.raises(BuildError, match="another build") as differs:
        check_signed(signed, STATEMENT + b" ", keys / "builder.pem")
    assert differs.value.code == "image.differs"


def test_an_altered_signature_does_not_hold(keys: Path) -> None:
    signed = keys / "provenance.dsse.json"
    envelope = provenance_signer(keys / "builder.key.pem")(STATEMENT)
    at = envelope.index(b'"sig":"') + len(b'"sig":"')
    other = b"B" if envelope[at : at + 1] == b"A" else b"A"
    signed.write_bytes(envelope[:at] + other + envelope[at + 1 :])
    check_signed(signed, STATEMENT, None)
    with pytest.raises(AuthenticationError):
        check_signed(signed, STATEMENT, keys / "builder.pem")


def test_an_envelope_of_something_else_is_no_provenance(keys: Path) -> None:
    signer = KeySigner.of("builder", load_private_key((keys / "builder.key.pem").read_bytes()))
    signed = keys / "provenance.dsse.json"

    def write(payload_type: str) -> None:
        envelope = Envelope(payload_type=payload_type, payload=STATEMENT)
        signed.write_bytes(canonical(add_signature(envelope, signer).to_json()))

    write(PAYLOAD_TYPE)
    check_signed(signed, STATEMENT, keys / "builder.pem")
    write("application/json")
    with pytest.raises(BuildError) as caught:
        check_signed(signed, STATEMENT, keys / "builder.pem")
    assert caught.value.code == "image.differs"
    for content in (b"", b"{}", b"[]"):
        signed.write_bytes(content)
        with pytest.raises(BuildError) as caught:
            check_signed(signed, STATEMENT, keys / "builder.pem")
        assert caught.value.code == "image.differs"


def test_files_that_cannot_be_used_for_a_check(keys: Path) -> None:
    signed, key = keys / "provenance.dsse.json", keys / "builder.pem"
    signed.write_bytes(provenance_signer(keys / "builder.key.pem")(STATEMENT))
    check_signed(signed, STATEMENT, key)
    with pytest.raises(ConfigurationError) as caught:
        check_signed(keys / "none", STATEMENT, key)
    assert caught.value.code == "image.check"
    (keys / "word.pem").write_text("no key: hunter2")
    for other in (keys / "none.pem", keys / "word.pem"):
        with pytest.raises(ConfigurationError) as caught:
            check_signed(signed, STATEMENT, other)
        assert caught.value.code == "image.signing_key"
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "no key"])
def test_a_key_that_cannot_sign_is_refused_before_the_build(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build takes minutes; here nothing may be built at all."""
    (tmp_path / "image.toml").write_text(IMAGE)
    key, out = tmp_path / "key.pem", tmp_path / "image"
    if content is not None:
        key.write_text(content)
    words = ["image", "build", str(tmp_path / "image.toml"), "--out", str(out)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--work", str(tmp_path / "work"), "--sign-key", str(key), "--describe"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert str(key) in said
    assert "image.signing_key" in said
    with pytest.raises(ConfigurationError, match=r"key\.pem"):
        provenance_signer(key)


def test_what_a_check_asks_for_is_looked_at_before_it_builds(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (keys / "image.toml").write_text(IMAGE)
    words = ["image", "build", str(keys / "image.toml"), "--out", str(keys)]
    words += ["--work", str(keys / "work"), "--describe", "--check"]
    signed, key = keys / "provenance.dsse.json", keys / "builder.pem"
    for there, options, code in (
        (False, ("--signer", str(key)), "image.check"),
        (True, ("--signer", str(keys / "builder.key.pem")), "image.signing_key"),
        (True, ("--signer", str(keys / "none.pem")), "image.signing_key"),
        (True, ("--sign-key", str(keys / "builder.key.pem")), "image.check"),
        (True, ("--signer", str(key)), None),
    ):
        if there:
            signed.write_bytes(provenance_signer(keys / "builder.key.pem")(STATEMENT))
        with pytest.raises(SystemExit) as left:
            main([*words, *options])
        said = capsys.readouterr().err
        assert left.value.code == (2 if code else 0), said
        assert code is None or said.count(f"[{code}]") == 1
        assert said.count("none.pem") <= 1


def test_a_check_says_what_it_did_not_compare(tmp_path: Path) -> None:
    for name in ("root.img", "reference-values.json", "provenance.dsse.json", "golden.json"):
        (tmp_path / name).touch()
    names = ("root.img",)
    assert [line.split(":")[0] for line in beside(tmp_path, names, None)] == [
        "Not compared",
        "Not checked",
    ]
    assert len(list(beside(tmp_path, names, Path("builder.pem")))) == 1
    assert not list(beside(tmp_path, (*names, "reference-values.json"), Path("builder.pem")))


def test_a_file_of_another_image_is_a_difference(tmp_path: Path) -> None:
    (tmp_path / "root.img").touch()
    assert not list(beside(tmp_path, ("root.img",), None))
    (tmp_path / "image.eif").touch()
    with pytest.raises(BuildError, match=r"image\.eif"):
        list(beside(tmp_path, ("root.img",), None))
