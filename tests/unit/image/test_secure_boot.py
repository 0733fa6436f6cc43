"""Secure Boot with own keys: signatures that another tool accepts, stores that firmware reads."""

from __future__ import annotations

import shutil
import struct
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from cloister.cli.main import build_app
from cloister.errors import BuildError, ConfigurationError, MalformedError
from cloister.image.authenticode import parse_pe
from cloister.image.authenticode_sign import sign_program
from cloister.image.ovmf_variables import enrol, read_variables
from cloister.image.secure_boot import list_entries
from cloister.image.secure_boot_keys import SecureBootKeys, load_keys
from support import boot_parts as made


def issue(name: str, *, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """A certificate of its own key; firmware looks at the key alone."""
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(named, named, key.public_key(), 77)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    dated = builder.not_valid_before(start).not_valid_after(start + timedelta(days=3650))
    return dated.sign(key, SHA256())


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CERTIFICATE = issue("operator", key=KEY)
STRANGER = issue("stranger", key=OTHER)
KEYS = SecureBootKeys(pk=CERTIFICATE, kek=CERTIFICATE, db=CERTIFICATE)
UKI = made.uki()


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(build_app(["image"]), ["image", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pk", "kek", "db"):
        (tmp_path / f"{name}.pem").write_bytes(CERTIFICATE.public_bytes(Encoding.PEM))
    private = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "db.key").write_bytes(private)
    (tmp_path / "uki.efi").write_bytes(UKI)
    (tmp_path / "vars.fd").write_bytes(made.variable_store())
    return tmp_path


def test_signing_changes_no_measurement_and_is_repeatable() -> None:
    signed = sign_program(UKI, key=KEY, certificate=CERTIFICATE)
    assert parse_pe(signed).digest() == parse_pe(UKI).digest()
    assert parse_pe(signed).certificates_at == len(UKI)
    assert sign_program(UKI, key=KEY, certificate=CERTIFICATE) == signed
    assert sign_program(UKI, key=OTHER, certificate=STRANGER) != signed


def test_what_is_not_signed() -> None:
    signed = sign_program(UKI, key=KEY, certificate=CERTIFICATE)
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    for data, key, certificate in (
        (signed, KEY, CERTIFICATE),
        (UKI, KEY, STRANGER),
        (UKI, short, issue("short", key=short)),
    ):
        with pytest.raises(BuildError):
            sign_program(data, key=key, certificate=certificate)
    with pytest.raises(MalformedError):
        sign_program(b"no program", key=KEY, certificate=CERTIFICATE)


@pytest.mark.skipif(
    shutil.which("sbverify") is None,
    reason="SIGNATURES NOT COMPARED: sbverify (sbsigntool) is not installed",
)
@pytest.mark.parametrize("length", [0, 3])
def test_sbverify_agrees(folder: Path, length: int) -> None:
    def verdict(data: bytes, certificate: x509.Certificate) -> bool:
        (folder / "it.efi").write_bytes(data)
        (folder / "it.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        command = ["sbverify", "--cert", str(folder / "it.pem"), str(folder / "it.efi")]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    program = made.pe_file([(".text", b"code")], trailing=bytes(length))
    signed = sign_program(program, key=KEY, certificate=CERTIFICATE)
    assert verdict(signed, CERTIFICATE)
    assert not verdict(signed, STRANGER)
    at = parse_pe(signed).sections[0].offset
    assert not verdict(signed[:at] + b"C" + signed[at + 1 :], CERTIFICATE)


def test_keys_are_put_into_an_empty_store() -> None:
    before = made.variable_store()
    after = enrol(before, KEYS.state())
    assert len(after) == len(before)
    assert enrol(before, KEYS.state()) == after
    found = {variable.name: variable.value for variable in read_variables(after)}
    assert list(found) == ["PK", "KEK", "db", "SecureBootEnable"]
    assert found["SecureBootEnable"] == b"\x01"
    der = CERTIFICATE.public_bytes(Encoding.DER)
    for name in ("PK", "KEK", "db"):
        (entry,) = list_entries(found[name])
        assert entry[16:] == der
    assert found["db"] == KEYS.state().db


def test_what_is_there_stays() -> None:
    before = made.variable_store(("Lang", b"eng"), deleted=("PK", b"an older key"))
    assert [variable.name for variable in read_variables(before)] == ["Lang"]
    names = [variable.name for variable in read_variables(enrol(before, KEYS.state()))]
    assert names == ["Lang", "PK", "KEK", "db", "SecureBootEnable"]


GOOD = made.variable_store(("Lang", b"eng"))


@pytest.mark.parametrize(
    "store",
    [
        b"",
        bytes(1000),
        GOOD[:80],
        GOOD[:16] + bytes(16) + GOOD[32:],
        GOOD[:40] + b"_FVX" + GOOD[44:],
        GOOD[:72] + bytes(16) + GOOD[88:],
        GOOD[:92] + b"\x00" + GOOD[93:],
        GOOD[:88] + (1 << 30).to_bytes(4, "little") + GOOD[92:],
        GOOD[:100] + b"\xaa\x56" + GOOD[102:],
        GOOD[:136] + (1 << 20).to_bytes(4, "little") + GOOD[140:],
        GOOD[:136] + (3).to_bytes(4, "little") + GOOD[140:],
        GOOD[:-1] + b"\0",
        # A name of half a character, and one of none; the variable is as long as before.
        GOOD[:136] + struct.pack("<II", 11, 2) + GOOD[144:],
        GOOD[:136] + struct.pack("<II", 0, 13) + GOOD[144:],
        GOOD[:48] + struct.pack("<H", len(GOOD) - 27) + GOOD[50:],
        *[made.variable_store((name, b"a key")) for name in ("PK", "KEK", "db", "dbx")],
        made.variable_store(("SecureBootEnable", b"\0")),
        made.variable_store(size=512),
        GOOD + bytes(4 << 20),
    ],
)
def test_stores_that_take_no_keys(store: bytes) -> None:
    assert enrol(GOOD, KEYS.state())
    with pytest.raises(MalformedError) as caught:
        enrol(store, KEYS.state())
    assert caught.value.code == "image.variables"


def test_commands(folder: Path) -> None:
    keys = ("--keys", folder)
    assert run("sign", folder / "uki.efi", *keys, "-o", folder / "signed.efi").exit_code == 0
    expected = sign_program(UKI, key=KEY, certificate=CERTIFICATE)
    assert (folder / "signed.efi").read_bytes() == expected
    assert run("enrol", folder / "vars.fd", *keys, "-o", folder / "mine.fd").exit_code == 0
    store = enrol(made.variable_store(), KEYS.state())
    assert (folder / "mine.fd").read_bytes() == store
    assert load_keys(folder) == KEYS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pk.pem", None),
        ("kek.pem", b"no certificate"),
        ("db.key", b"no key"),
        ("db.key", None),
        ("uki.efi", None),
    ],
)
def test_a_folder_that_is_not_whole(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    result = run("sign", folder / "uki.efi", "--keys", folder, "-o", folder / "signed.efi")
    assert isinstance(result.exception, ConfigurationError)
    assert not (folder / "signed.efi").exists()


def test_a_key_of_another_kind_is_not_quoted(folder: Path) -> None:
    (folder / "db.key").write_bytes(b"-----BEGIN SECRET-----\nhunter2\n")
    result = run("sign", folder / "uki.efi", "--keys", folder, "-o", folder / "signed.efi")
    assert "hunter2" not in str(result.exception)
