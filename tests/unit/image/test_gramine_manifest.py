"""SGX: the manifest is TOML that says what it should, and a signature names what was measured."""

from __future__ import annotations

import hashlib
import re
import struct
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.errors import ConfigurationError, MalformedError
from cloister.image.gramine import parse_sigstruct, worker_manifest

MODULUS = bytes(range(256)) + bytes(range(128))


def sigstruct(*, attributes: int = 0x5, length: int = 1808) -> bytes:
    """By hand (Intel SDM volume 3D, table 38-19)."""
    data = bytearray(1808)
    data[:16] = struct.pack("<IIII", 6, 0xE1, 0x10000, 0)
    data[24:40] = struct.pack("<IIII", 0x101, 0x60, 0x60, 1)
    data[128:512] = MODULUS
    data[928:944] = struct.pack("<QQ", attributes, 3)
    data[960:992] = b"\xab" * 32
    data[1024:1028] = struct.pack("<HH", 7, 9)
    return bytes(data)[:length]


def test_what_a_signature_names() -> None:
    found = parse_sigstruct(sigstruct())
    assert found.mrenclave == b"\xab" * 32
    assert found.mrsigner == hashlib.sha256(MODULUS).digest()
    assert (found.product, found.version, found.debug) == (7, 9, False)
    assert parse_sigstruct(sigstruct(attributes=0x7)).debug


@pytest.mark.parametrize(
    "data",
    [
        b"",
        sigstruct(length=1807),
        sigstruct() + b"\0",
        b"\x07" + sigstruct()[1:],
        sigstruct()[:24] + b"\x02" + sigstruct()[25:],
    ],
)
def test_what_is_no_signature(data: bytes) -> None:
    assert parse_sigstruct(sigstruct()).product == 7
    with pytest.raises(MalformedError) as caught:
        parse_sigstruct(data)
    assert caught.value.code == "image.sigstruct"


def rendered(text: str) -> dict[str, object]:
    """As gramine-manifest would, with its own values for what stands in double braces."""
    return tomllib.loads(re.sub(r"\{\{.*?\}\}", "/gramine", text))


def test_the_manifest_keeps_to_what_it_was_given() -> None:
    text = worker_manifest(
        python="/opt/cloister/bin/python",
        folders=("/opt/cloister", '/srv/"model"'),
        arguments=("-I", "-m", "cloister.cli.main"),
    )
    manifest = rendered(text)
    assert manifest["loader"]["argv"] == [  # type: ignore[index]  # a table
        "/opt/cloister/bin/python",
        *("-I", "-m", "cloister.cli.main"),
    ]
    sgx = manifest["sgx"]
    assert isinstance(sgx, dict)
    assert sgx["debug"] is False
    assert sgx["remote_attestation"] == "dcap"
    assert sgx["file_check_policy"] == "strict"
    assert "allowed_files" not in sgx
    assert 'file:/srv/"model"/' in sgx["trusted_files"]
    paths = [mount["path"] for mount in manifest["fs"]["mounts"]]  # type: ignore[index]
    assert paths[2:] == ["/opt/cloister", '/srv/"model"', "/tmp"]  # inside
    with pytest.raises(ConfigurationError):
        worker_manifest(python="python", folders=("/opt",), arguments=())


def test_the_command(tmp_path: Path) -> None:
    words = ["image", "sgx-manifest", "-o", str(tmp_path / "worker.manifest.template")]
    result = CliRunner().invoke(build_app(["image"]), [*words, "--folder", "/opt/cloister"])
    assert result.exit_code == 0, result.exception
    manifest = rendered((tmp_path / "worker.manifest.template").read_text())
    assert manifest["libos"] == {"entrypoint": "/usr/bin/python3"}
