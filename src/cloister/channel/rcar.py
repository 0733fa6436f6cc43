"""Messages of the KBS protocol: Request, Challenge, Attestation, Response (RCAR).

Source: "KBS Attestation Protocol" (confidential-containers/trustee,
``kbs/docs/kbs_attestation_protocol.md``). Its text gives version 0.1.1; the code of its clients
and servers speaks 0.4.0 and accepts nothing else, and so does this.

Cloister's workers put what the protocol has no place for under ``cloister`` in ``extra-params``
and ``primary_evidence``. Members that are not known are ignored, for stock clients grow new ones.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Final

from cloister.channel.key_release import MAX_VERSION
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    decode_base64,
    expect_int,
    expect_keys,
    expect_object,
    expect_str,
    parse_json_object,
)

VERSION: Final = "0.4.0"
COOKIE: Final = "kbs-session-id"
AUTH_PATH: Final = "/kbs/v0/auth"
ATTEST_PATH: Final = "/kbs/v0/attest"
IDENTITY_PATH: Final = "/cloister/v0/broker"
"""Not of the protocol: a broker's identity and the evidence for it."""
ERROR_TYPE: Final = "https://github.com/confidential-containers/kbs/errors/"

MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_ATTESTATION_BYTES: Final = 4 * 1024 * 1024
"""Reports have 30 to 300 KiB, a manifest with its signatures 50 or so."""
MAX_REPORT_BYTES: Final = 2 * 1024 * 1024
MAX_MANIFEST_BYTES: Final = 1024 * 1024
_OWN: Final = "cloister"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a Cloister worker says it wants; stock clients say it only with their later GET."""

    resource: ResourceUri
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``POST /kbs/v0/auth``."""

    version: str
    tee: str
    ask: Ask | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a worker says that its evidence binds; the broker compares, and believes none of it."""

    broker: str
    resource: str
    wrapping_key: str
    """``sha256:<hex>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """``POST /kbs/v0/attest``."""

    nonce: str
    tee_pubkey: JsonObject
    evidence: JsonObject = field(repr=False)
    """``primary_evidence`` as sent; a Cloister worker's is read by `parse_worker_evidence`."""
    additional: str = ""
    """``additional_evidence`` as sent: stock evidence binds these very characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvidence:
    """What a Cloister worker proves itself with."""

    stated: Stated
    report: bytes = field(repr=False)
    """An attestation report (`cloister.evidence.report`) over a release statement."""
    manifest: bytes | None = field(default=None, repr=False)
    """The signed manifest that the worker was measured with, as a bundle."""


def encode_request(tee: str, ask: Ask) -> bytes:
    """A worker's first message."""
    own: JsonObject = {"resource": str(ask.resource), "version": ask.version}
    return _dump({"version": VERSION, "tee": tee, "extra-params": {_OWN: own}})


def parse_request(data: bytes) -> Request:
    """Read a Request; MalformedError, and nothing else."""
    what = "the request"
    members = parse_json_object(data, limit=MAX_REQUEST_BYTES, what=what)
    extra = members.get("extra-params")
    own = extra.get(_OWN) if isinstance(extra, dict) else None
    return Request(
        version=expect_str(members.get("version"), "the protocol's version", limit=32),
        tee=expect_str(members.get("tee"), "the tee", limit=32),
        ask=None if own is None else _ask(expect_object(own, "what the worker asks for")),
    )


def _ask(members: JsonObject) -> Ask:
    expect_keys(members, "what the worker asks for", required={"resource", "version"})
    version = members["version"]
    return Ask(
        resource=ResourceUri.parse(expect_str(members["resource"], "a secret's name", limit=256)),
        version=None
        if version is None
        else expect_int(version, "a secret's version", low=1, high=MAX_VERSION),
    )


def encode_challenge(nonce: bytes) -> bytes:
    """The broker's challenge: 32 random bytes as base64."""
    return _dump({"nonce": _encode(nonce), "extra-params": {}})


def parse_challenge(data: bytes) -> bytes:
    """Read the nonce of a challenge, 32 bytes; MalformedError, and nothing else."""
    members = parse_json_object(data, limit=MAX_REQUEST_BYTES, what="the challenge")
    nonce = decode_base64(members.get("nonce"), limit=32, what="the challenge's nonce")
    if len(nonce) != 32:
        raise MalformedError("the challenge's nonce has not 32 bytes")
    return nonce


def encode_attestation(*, nonce: bytes, tee_pubkey: JsonObject, evidence: WorkerEvidence) -> bytes:
    """A worker's second message."""
    stated: JsonObject = {
        "broker": evidence.stated.broker,
        "resource": evidence.stated.resource,
        "wrapping_key": evidence.stated.wrapping_key,
    }
    own: JsonObject = {
        "stated": stated,
        "report": evidence.report.decode("utf-8"),
        "manifest": None if evidence.manifest is None else _encode(evidence.manifest),
    }
    return _dump(
        {
            "runtime-data": {"nonce": _encode(nonce), "tee-pubkey": tee_pubkey},
            "tee-evidence": {"primary_evidence": {_OWN: own}, "additional_evidence": "{}"},
        }
    )


def parse_attestation(data: bytes) -> Attestation:
    """Read an Attestation; MalformedError, and nothing else."""
    members = parse_json_object(data, limit=MAX_ATTESTATION_BYTES, what="the attestation")
    runtime = expect_object(members.get("runtime-data"), "runtime-data")
    evidence = expect_object(members.get("tee-evidence"), "tee-evidence")
    return Attestation(
        nonce=expect_str(runtime.get("nonce"), "the nonce", limit=128),
        tee_pubkey=expect_object(runtime.get("tee-pubkey"), "tee-pubkey"),
        evidence=expect_object(evidence.get("primary_evidence"), "primary_evidence"),
        additional=expect_str(
            evidence.get("additional_evidence", ""), "additional_evidence", limit=64 * 1024
        ),
    )


def parse_worker_evidence(evidence: JsonObject) -> WorkerEvidence:
    """Read a Cloister worker's ``primary_evidence``; MalformedError, and nothing else."""
    what = "a worker's evidence"
    expect_keys(evidence, what, required={_OWN})
    own = expect_object(evidence[_OWN], what)
    expect_keys(own, what, required={"stated", "report", "manifest"})
    stated = expect_object(own["stated"], "what the evidence is said to bind")
    names = {"broker", "resource", "wrapping_key"}
    expect_keys(stated, "what the evidence is said to bind", required=names)
    manifest = own["manifest"]
    return WorkerEvidence(
        stated=Stated(
            **{name: expect_str(stated[name], f"the stated {name}", limit=256) for name in names}
        ),
        report=_report(own["report"]),
        manifest=None
        if manifest is None
        else decode_base64(manifest, limit=MAX_MANIFEST_BYTES, what="the manifest"),
    )


def _report(value: object) -> bytes:
    """A report is JSON, and stands here as its own text: base64 of it took longer to read."""
    report = expect_str(value, "the report", limit=MAX_REPORT_BYTES).encode("utf-8")
    if len(report) > MAX_REPORT_BYTES:
        raise MalformedError(f"the report has more than {MAX_REPORT_BYTES} bytes")
    return report


def encode_token(token: str) -> bytes:
    """The broker's answer to an attestation that it accepted."""
    return _dump({"token": token})


def parse_token(data: bytes) -> str:
    """Read the token; MalformedError, and nothing else."""
    members = parse_json_object(data, limit=MAX_REQUEST_BYTES, what="the broker's answer")
    return expect_str(members.get("token"), "the token", limit=8192)


def encode_error(kind: str, detail: str) -> bytes:
    """ErrorInformation: `kind` is one word, `detail` a sentence with a code in brackets."""
    return _dump({"type": ERROR_TYPE + kind, "detail": detail})


def parse_error(data: bytes) -> str:
    """The detail of an error, at most 512 printable characters; MalformedError if it is none."""
    members = parse_json_object(data, limit=MAX_REQUEST_BYTES, what="the broker's error")
    detail = expect_str(members.get("detail"), "an error's detail", limit=512)
    return "".join(character if character.isprintable() else "?" for character in detail)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _dump(value: dict[str, Json]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
