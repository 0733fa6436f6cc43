"""Models that their publisher signed, with signatures of the reference implementation."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.weights.header import About, FileEntry, Header, Kind
from cloister.weights.model_signing import authenticate_model, load_signer

VECTORS = Path(__file__).parents[2] / "vectors" / "model_signing"
SIGNER = load_signer((VECTORS / "signer.pem").read_bytes())
FOLDER = (VECTORS / "folder.sig.json").read_bytes()
FILE = (VECTORS / "file.sig.json").read_bytes()

SECT113R1 = b"""\
-----BEGIN PUBLIC KEY-----
MDQwEAYHKoZIzj0CAQYFK4EEAAQDIAAEAKFypN+aFOOKVmvhiBqpAPkeABQ8RXGj
rEwMzMFa
-----END PUBLIC KEY-----
"""
"""A key on a curve that the library knows by name only."""


def header_of(kind: Kind, **files: bytes) -> Header:
    return Header(
        kind=kind,
        files=tuple(
            FileEntry(
                path=name.replace("_", "."),
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
            for name, content in files.items()
        ),
        about=About(name="x"),
        key_id=bytes(16),
        salt=bytes(32),
    )


FOLDER_HEADER = header_of(Kind.SAFETENSORS, config_json=b"{}", model_safetensors=b"a" * 700)
FILE_HEADER = header_of(Kind.GGUF, model_gguf=b"GGUF")


def test_what_the_reference_implementation_signed_is_authentic() -> None:
    authenticate_model(FOLDER, SIGNER, FOLDER_HEADER)
    authenticate_model(FILE, SIGNER, FILE_HEADER)
    renamed = replace(FILE_HEADER.files[0], path="other.gguf")
    authenticate_model(FILE, SIGNER, replace(FILE_HEADER, files=(renamed,)))


def test_other_files_than_were_signed_are_refused() -> None:
    one, two = FOLDER_HEADER.files
    more = FileEntry(path="z.json", size=1, sha256="0" * 64)
    changed = (
        (one, replace(two, sha256="0" * 64)),
        (one,),
        (one, two, more),
        (replace(one, path="config.jsox"), two),
        (replace(one, sha256=two.sha256), replace(two, sha256=one.sha256)),
    )
    for files in changed:
        with pytest.raises(AuthenticationError):
            authenticate_model(FOLDER, SIGNER, replace(FOLDER_HEADER, files=files))
    with pytest.raises(AuthenticationError):
        authenticate_model(FILE, SIGNER, FOLDER_HEADER)


def test_another_signer_is_refused() -> None:
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        with pytest.raises(AuthenticationError):
            authenticate_model(FOLDER, ec.generate_private_key(curve).public_key(), FOLDER_HEADER)


def test_every_changed_byte_of_payload_and_signature_is_refused() -> None:
    for member in ("payload", "sig"):
        bundle = json.loads(FOLDER)
        envelope = bundle["dsseEnvelope"]
        place = envelope if member == "payload" else envelope["signatures"][0]
        data = bytearray(base64.b64decode(place[member]))
        for index in range(len(data)):
            data[index] ^= 1
            place[member] = base64.b64encode(data).decode()
            with pytest.raises(AuthenticationError):
                authenticate_model(json.dumps(bundle).encode(), SIGNER, FOLDER_HEADER)
            data[index] ^= 1
        place[member] = base64.b64encode(data).decode()
        authenticate_model(json.dumps(bundle).encode(), SIGNER, FOLDER_HEADER)


KEY = ec.generate_private_key(ec.SECP384R1())


def signed(**changes: Any) -> bytes:
    """The folder's statement with members changed, signed by a key of our own."""
    statement = json.loads(base64.b64decode(json.loads(FOLDER)["dsseEnvelope"]["payload"]))
    for place, value in changes.items():
        holder: Any = statement
        *path, last = place.split("__")
        for part in path:
            holder = holder[part]
        holder[last] = value
    payload = json.dumps(statement).encode()
    kind = "application/vnd.in-toto+json"
    covered = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    bundle = json.loads(FOLDER)
    bundle["verificationMaterial"]["publicKey"]["hint"] = hashlib.sha256(pem).hexdigest()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature = KEY.sign(covered, ec.ECDSA(hashes.SHA384()))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(bundle).encode()


RESOURCES = json.loads(base64.b64decode(json.loads(FOLDER)["dsseEnvelope"]["payload"]))[
    "predicate"
]["resources"]


def test_a_file_that_is_signed_twice_is_malformed() -> None:
    """With a subject that agrees, so that nothing else is wrong."""
    twice = [RESOURCES[0], *RESOURCES]
    whole = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in twice)).hexdigest()
    subject = [{"name": "folder", "digest": {"sha256": whole}}]
    authenticate_model(signed(), KEY.public_key(), FOLDER_HEADER)
    with pytest.raises(MalformedError):
        authenticate_model(
            signed(predicate__resources=twice, subject=subject), KEY.public_key(), FOLDER_HEADER
        )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"_type": "https://in-toto.io/Statement/v2"}, UnsupportedError),
        ({"predicateType": "https://model_signing/Digests/v0.1"}, UnsupportedError),
        ({"predicate__serialization": {"method": "shards"}}, UnsupportedError),
        (
            {"predicate__serialization": {"method": "files", "hash_type": "blake2b"}},
            UnsupportedError,
        ),
        (
            {"predicate__resources": [{**RESOURCES[0], "algorithm": "md5"}, RESOURCES[1]]},
            UnsupportedError,
        ),
        ({"predicate__resources": [RESOURCES[0], RESOURCES[0], RESOURCES[1]]}, MalformedError),
        ({"predicate__resources": RESOURCES[:1]}, MalformedError),
        ({"predicate__resources": [*RESOURCES, 1]}, MalformedError),
        ({"subject": []}, MalformedError),
        ({"predicate": None}, MalformedError),
    ],
)
def test_what_this_version_does_not_know_is_no_pass(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    authenticate_model(signed(), KEY.public_key(), FOLDER_HEADER)
    with pytest.raises(error):
        authenticate_model(signed(**changes), KEY.public_key(), FOLDER_HEADER)


def test_signatures_by_identities_are_no_pass() -> None:
    bundle = json.loads(FOLDER)
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AA=="}}
    with pytest.raises(UnsupportedError):
        authenticate_model(json.dumps(bundle).encode(), SIGNER, FOLDER_HEADER)


def test_a_signer_is_an_elliptic_key() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    koblitz = ec.generate_private_key(ec.SECP256K1()).public_key()
    unknown = koblitz.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for bad in (b"", b"x", pem, unknown, SECT113R1):
        with pytest.raises(ConfigurationError):
            load_signer(bad)
