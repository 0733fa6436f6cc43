"""Keyset, statement and receipts against the published `aci/1` vectors, and under attack."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel.claims import ClaimsDocument, ModelClaim, parse_claims
from cloister.channel.keyset import PublicKeyEntry, parse_keyset
from cloister.channel.receipt import (
    Receipt,
    parse_receipt,
    parse_receipt_trailer,
    sign_receipt,
    verify_receipt,
)
from cloister.channel.statement import report_data, statement
from cloister.errors import AuthenticationError, MalformedError
from cloister.model_digest import Role, model_digest
from cloister.strictjson import canonical

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "aci" / "aci-1.json").read_text()
)
KEYSET = parse_keyset(VECTORS["keyset"])
REQUEST_HASH = hashlib.sha256(VECTORS["request_body"].encode()).digest()
RESPONSE_HASH = hashlib.sha256(VECTORS["response_body"].encode()).digest()
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["receipt_seed"]))


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def test_keyset_digest_is_the_published_one() -> None:
    assert canonical(KEYSET.to_json()).decode() == VECTORS["keyset_jcs"]
    assert KEYSET.digest == VECTORS["keyset_digest"]


@pytest.mark.parametrize(
    ("nonce", "name"),
    [(bytes.fromhex(VECTORS["nonce"]), ""), (None, "_unchallenged")],
)
def test_statement_and_report_data(nonce: bytes | None, name: str) -> None:
    assert statement(KEYSET.digest, nonce).decode() == VECTORS["statement" + name]
    assert report_data(KEYSET.digest, nonce).hex() == VECTORS["report_data" + name]


def test_statement_refuses_what_would_need_escaping() -> None:
    for digest in ('sha256:"', "sha256:" + "A" * 64, "md5:" + "0" * 64, ""):
        with pytest.raises(ValueError, match="keyset digest"):
            statement(digest, None)
    with pytest.raises(ValueError, match="32 bytes"):
        statement(KEYSET.digest, b"short")


def test_receipt_signature_is_the_published_one() -> None:
    unsigned = {
        name: value
        for name, value in VECTORS["receipt"].items()
        if name not in {"signature", "key_id"}
    }
    signed = sign_receipt(unsigned, key_id="receipt-1", key=KEY)
    assert signed.document == VECTORS["receipt"]


def verify(receipt: Receipt) -> None:
    verify_receipt(receipt, keyset=KEYSET, request_hash=REQUEST_HASH, response_hash=RESPONSE_HASH)


def test_receipt_verifies_from_any_encoding_and_from_the_trailer() -> None:
    receipt = parse_receipt(encoded(VECTORS["receipt"]))
    verify(receipt)
    verify(parse_receipt_trailer(receipt.to_trailer()))


def resigned(**changes: Any) -> Receipt:
    document = copy.deepcopy(VECTORS["receipt"])
    document.update(changes)
    del document["signature"]
    key_id = document.pop("key_id")
    return sign_receipt(document, key_id=key_id, key=KEY)


@pytest.mark.parametrize(
    ("receipt", "code"),
    [
        (resigned(key_id="e2ee-1"), "receipt.key"),
        (resigned(key_id="nobody"), "receipt.key"),
        (Receipt(document={**VECTORS["receipt"], "served_at": 1}), "receipt.signature"),
        (resigned(api_version="aci/2"), "receipt.keyset"),
        (resigned(workload_keyset_digest="sha256:" + "0" * 64), "receipt.keyset"),
    ],
)
def test_receipt_refused(receipt: Receipt, code: str) -> None:
    verify(parse_receipt(encoded(VECTORS["receipt"])))
    with pytest.raises(AuthenticationError) as caught:
        verify(receipt)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("request_hash", "response_hash", "code"),
    [
        (RESPONSE_HASH, RESPONSE_HASH, "receipt.request"),
        (REQUEST_HASH, REQUEST_HASH, "receipt.response"),
    ],
)
def test_receipt_for_another_exchange_refused(
    request_hash: bytes, response_hash: bytes, code: str
) -> None:
    receipt = parse_receipt(encoded(VECTORS["receipt"]))
    verify(receipt)
    with pytest.raises(AuthenticationError) as caught:
        verify_receipt(
            receipt, keyset=KEYSET, request_hash=request_hash, response_hash=response_hash
        )
    assert caught.value.code == code


def test_receipt_with_two_response_events_is_ambiguous() -> None:
    log = VECTORS["receipt"]["event_log"]
    with pytest.raises(MalformedError):
        parse_receipt(resigned(event_log=[*log, log[-1]]).encode())
    with pytest.raises(MalformedError, match="first event"):
        parse_receipt(resigned(event_log=log[1:]).encode())


def test_unknown_algorithms_are_kept_but_never_used() -> None:
    document = copy.deepcopy(VECTORS["keyset"])
    document["receipt_signing_keys"][0]["algo"] = "ed448"
    keyset = parse_keyset(document)
    assert keyset.receipt_key("receipt-1") is None
    assert keyset.ohttp_key_configs() == ()


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(VECTORS["keyset"])
    target: Any = document
    for step in path[:-1]:
        target = target[step]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        changed(["not_after"], "1800000000"),
        changed(["not_after"], True),
        changed(["not_after"], -1),
        changed(["subject"], None),
        changed(["extra"], 1),
        changed(["receipt_signing_keys"], {}),
        changed(["receipt_signing_keys", 0, "key_id"], "e2ee-1"),
        changed(
            ["receipt_signing_keys", 0, "public_key"],
            VECTORS["keyset"]["e2ee_public_keys"][0]["public_key"],
        ),
        changed(["tls_public_keys", 0, "spki_sha256"], "C0" * 32),
        changed(["receipt_signing_keys"], VECTORS["keyset"]["receipt_signing_keys"] * 17),
    ],
)
def test_malformed_keysets(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        parse_keyset(document)


def test_claims_document_round_trip_and_subject() -> None:
    claims = ClaimsDocument(
        models=(ModelClaim(name="m", sha256="ab" * 32), ModelClaim(name="u", sha256=None)),
        configuration={"debug": False, "limits": {"streams": 8}},
        isolation="bubblewrap+seccomp",
    )
    data = claims.encode()
    assert parse_claims(data) == claims
    assert claims.subject == "cloister:sha256:" + hashlib.sha256(data).hexdigest()
    keyset = parse_keyset({**VECTORS["keyset"], "subject": claims.subject})
    assert keyset.claims_digest == hashlib.sha256(data).digest()
    assert KEYSET.claims_digest is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data + b" ",
        lambda data: data.replace(b'"isolation"', b' "isolation"'),
        lambda data: data.replace(b"cloister/claims/1", b"cloister/claims/2"),
        lambda data: data.replace(b'"sha256":"' + b"ab" * 32, b'"sha256":"' + b"AB" * 32),
        lambda data: data.replace(b'"models":[', b'"models":{}, "m":['),
    ],
)
def test_claims_document_must_be_canonical(edit: Any) -> None:
    claims = ClaimsDocument(
        models=(ModelClaim(name="m", sha256="ab" * 32),), configuration={}, isolation="x"
    )
    data = claims.encode()
    parse_claims(data)
    assert edit(data) != data
    with pytest.raises(MalformedError):
        parse_claims(edit(data))


def test_a_model_of_several_files_names_them() -> None:
    files = {Role.MODEL: "1" * 64, Role.ADAPTER: "2" * 64}
    digest = model_digest(files)
    claims = ClaimsDocument(
        models=(ModelClaim(name="m", sha256=digest, files=files),), configuration={}, isolation="x"
    )
    data = claims.encode()
    assert parse_claims(data) == claims
    assert claims.models[0].digests == {digest, "1" * 64, "2" * 64}
    named = b'{"adapter":"' + b"2" * 64 + b'","model":"' + b"1" * 64 + b'"}'
    assert named in data
    for other in (
        b"{}",
        b'{"model":"' + digest.encode() + b'"}',
        named.replace(b"2", b"3"),
        named.replace(b"adapter", b"another"),
        named.replace(b'"model"', b'"draft"'),
        b"[]",
        b"null",
    ):
        with pytest.raises(MalformedError):
            parse_claims(data.replace(named, other))
    for sha256 in (b"null", b'"' + b"1" * 64 + b'"'):
        with pytest.raises(MalformedError):
            parse_claims(data.replace(b'"' + digest.encode() + b'"', sha256))


def test_entries_write_what_they_read() -> None:
    entry = PublicKeyEntry(key_id="k", algo="ohttp", public_key="00")
    assert entry.to_json() == {"algo": "ohttp", "key_id": "k", "public_key": "00"}
