"""``cloister image eif``: build, describe, and reference values that a document is judged by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from typer.testing import CliRunner, Result

from cloister.cli.main import build_app
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.verifier import reference_values
from support.certificates import issue


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(build_app(["image"]), ["image", "eif", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("kernel", "boot", "app"):
        (tmp_path / part).write_bytes(part.encode() * 9)
    party = issue("image signer", key=ec.derive_private_key(7, ec.SECP384R1()))
    (tmp_path / "cert.pem").write_bytes(party.certificate.public_bytes(Encoding.PEM))
    key = (Encoding.PEM, PrivateFormat.PKCS8)
    (tmp_path / "key.pem").write_bytes(party.key.private_bytes(*key, NoEncryption()))
    locked = BestAvailableEncryption(b"password")
    (tmp_path / "locked.pem").write_bytes(party.key.private_bytes(*key, locked))
    return tmp_path


def build(folder: Path, *more: str | Path) -> Result:
    ramdisks = ("--ramdisk", folder / "boot", "--ramdisk", folder / "app")
    return run("build", "--kernel", folder / "kernel", *ramdisks, "-o", folder / "it.eif", *more)


def signing(folder: Path, key: str = "key.pem") -> tuple[str | Path, ...]:
    return ("--signing-certificate", folder / "cert.pem", "--private-key", folder / key)


def test_what_is_built_is_described_alike(folder: Path) -> None:
    built = json.loads(build(folder, "--name", "llm", "--version", "3").stdout)
    described = json.loads(run("describe", folder / "it.eif").stdout)
    assert described["Measurements"] == built["Measurements"]
    assert described["ImageName"] == "llm"
    assert described["ImageVersion"] == "3"
    assert described["IsSigned"] is False
    assert described["CheckCRC"] is True
    assert described["Architecture"] == "x86_64"
    assert [section["Type"] for section in described["Sections"]] == [
        "kernel",
        "cmdline",
        "metadata",
        "ramdisk",
        "ramdisk",
    ]


def test_a_signed_image_is_checked(folder: Path) -> None:
    plain = json.loads(build(folder).stdout)["Measurements"]
    signed = json.loads(build(folder, *signing(folder)).stdout)["Measurements"]
    assert signed.pop("PCR8") not in plain.values()
    assert signed == plain
    first = (folder / "it.eif").read_bytes()
    build(folder, *signing(folder))
    assert (folder / "it.eif").read_bytes() == first
    described = json.loads(run("describe", folder / "it.eif").stdout)
    assert described["SignatureCheck"] is True
    assert described["SigningCertificate"]["Issuer"] == "CN=image signer"


def test_a_signature_from_another_image_is_refused(folder: Path) -> None:
    import zlib

    build(folder, *signing(folder))
    assert run("describe", folder / "it.eif").exit_code == 0
    data = (folder / "it.eif").read_bytes().replace(b"app" * 9, b"bad" * 9)
    crc = zlib.crc32(data[548:], zlib.crc32(data[:544]))
    (folder / "it.eif").write_bytes(data[:544] + crc.to_bytes(4, "big") + data[548:])
    values = folder / "values.json"
    result = run("describe", folder / "it.eif", "--reference-values", values)
    assert isinstance(result.exception, AuthenticationError)
    assert json.loads(result.stdout)["SignatureCheck"] is False
    assert not values.exists()


def test_reference_values_list_the_registers(folder: Path) -> None:
    measurements = json.loads(build(folder, *signing(folder)).stdout)["Measurements"]
    values = folder / "values.json"
    assert run("describe", folder / "it.eif", "--reference-values", values).exit_code == 0
    (platform,) = reference_values.load_json(values.read_bytes()).platforms
    assert platform.platform == "nitro"
    assert platform.registers == {f"pcr{n}": (measurements[f"PCR{n}"],) for n in (0, 1, 2, 8)}


def test_inputs_that_are_unusable(folder: Path) -> None:
    assert build(folder, *signing(folder)).exit_code == 0
    for refused in (
        build(folder, *signing(folder)[:2]),
        build(folder, *signing(folder, "locked.pem")),
        build(folder, *signing(folder, "missing.pem")),
        build(folder, *signing(folder, "kernel")),
        run("describe", folder / "missing.eif"),
    ):
        assert isinstance(refused.exception, ConfigurationError)
    assert isinstance(run("describe", folder / "kernel").exception, MalformedError)
