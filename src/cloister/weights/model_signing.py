"""Signatures by who published a model: OpenSSF Model Signing v1.0, by a named key.

A signature is a Sigstore bundle (``model.sig``) whose DSSE envelope holds an in-toto statement
(github.com/sigstore/model-transparency, ``model_signing/_signing``): its predicate lists each file
of the model with its SHA-256, its subject the SHA-256 over those digests one after another. A model
of one file is listed as ``.``.

Keys only (ECDSA on P-256, P-384 or P-521, with the hash of that size). Bundles with certificates or
Sigstore identities, files split into shards, and other hashes are `UnsupportedError`, never a pass.
The list has to be the model's: a file more or less than was signed is refused, since what an engine
does follows from which files are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.manifest.dsse import Envelope, parse_envelope
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_hex,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.weights.header import Header, Kind

MAX_SIGNATURE: Final = 4 << 20
_MAX_RESOURCES: Final = 20_000
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_CODE: Final = "weights.signature"


def load_signer(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of who signs models. ConfigurationError if it is no ECDSA key in PEM."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ConfigurationError(
            "a signer of models is named by a public key in PEM, ECDSA on P-256, P-384 or P-521",
            code="weights.signer",
        )
    return key


def authenticate_model(signature: bytes, signer: ec.EllipticCurvePublicKey, header: Header) -> None:
    """See that `signer` signed exactly the files that `header` lists.

    The header's digests are only claims until the weights are opened, when they are proven.

    Raises:
        MalformedError: the signature does not decode.
        UnsupportedError: it is of a kind that is not checked here.
        AuthenticationError (``weights.signature``): it is by another key, or over other files.
    """
    bundle = parse_json_object(signature, limit=MAX_SIGNATURE, what="the model's signature")
    envelope = _authenticated(bundle, signer)
    statement = parse_json_object(
        envelope.payload, limit=MAX_SIGNATURE, what="the model's signed statement"
    )
    signed = _resources(statement)
    if signed != _files(header):
        raise AuthenticationError(
            "the signer signed other files than these weights have: some differ, are missing or "
            "were added",
            code=_CODE,
        )


def _authenticated(bundle: JsonObject, signer: ec.EllipticCurvePublicKey) -> Envelope:
    material = expect_object(bundle.get("verificationMaterial"), "the signature's material")
    if bundle.get("mediaType") != _BUNDLE or "publicKey" not in material:
        raise UnsupportedError(
            "the model's signature is not by a plain key: certificates and Sigstore identities "
            "are not checked here",
            code=_CODE,
        )
    hint = expect_object(material["publicKey"], "the signature's key").get("hint")
    envelope = parse_envelope(
        bundle.get("dsseEnvelope"), payload_type=_PAYLOAD, limit=MAX_SIGNATURE
    )
    pem = signer.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if hint != hashlib.sha256(pem).hexdigest() or len(envelope.signatures) != 1:
        raise AuthenticationError("the model was signed by another key", code=_CODE)
    try:
        signer.verify(
            envelope.signatures[0].data,
            envelope.signed_bytes,
            ec.ECDSA(_HASHES[signer.curve.name]),
        )
    except InvalidSignature:
        raise AuthenticationError(
            "the model's signature is not the named signer's, or it was changed", code=_CODE
        ) from None
    return envelope


def _resources(statement: JsonObject) -> Mapping[str, str]:
    """Path → SHA-256 of what was signed."""
    if statement.get("_type") != _STATEMENT or statement.get("predicateType") != _PREDICATE:
        raise UnsupportedError("the model's signature is of another version", code=_CODE)
    predicate = expect_object(statement.get("predicate"), "what was signed")
    how = expect_object(predicate.get("serialization"), "how it was signed")
    if how.get("method") != "files" or how.get("hash_type") != "sha256":
        raise UnsupportedError(
            "the model was signed in shards, or with another hash than SHA-256: sign it by files",
            code=_CODE,
        )
    listed = expect_list(predicate.get("resources"), "the signed files", limit=_MAX_RESOURCES)
    found = [_resource(entry) for entry in listed]
    resources = dict(found)
    if len(resources) != len(found):
        raise MalformedError("the model's signature names a file twice", code=_CODE)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in found)).hexdigest()
    if _subject(statement.get("subject")) != whole:
        raise MalformedError("the model's signature contradicts itself", code=_CODE)
    return resources


def _resource(value: Json) -> tuple[str, str]:
    entry = expect_object(value, "a signed file")
    if entry.get("algorithm") != "sha256":
        raise UnsupportedError("a file was signed with another hash than SHA-256", code=_CODE)
    name = expect_str(entry.get("name"), "the name of a signed file")
    return name, expect_hex(entry.get("digest"), "the digest of a signed file", size=32).hex()


def _subject(value: object) -> str:
    subjects = expect_list(value, "the signature's subject", limit=1)
    subject = expect_object(subjects[0] if subjects else None, "the signature's subject")
    digest = expect_object(subject.get("digest"), "the subject's digest")
    return expect_hex(digest.get("sha256"), "the subject's digest", size=32).hex()


def _files(header: Header) -> Mapping[str, str]:
    if header.kind is Kind.GGUF:
        return {".": header.files[0].sha256}
    return {file.path: file.sha256 for file in header.files}
