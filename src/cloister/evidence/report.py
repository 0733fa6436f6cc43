"""The attestation report of `aci/1` section 4, with evidence as named items.

The specification leaves ``attestation.evidence`` to each platform; here it is an object of
named items in the spirit of RATS Conceptual Message Wrappers
(draft-ietf-rats-msg-wrap)::

    "tpm.quote": {"media_type": "…", "data_b64": "…",
                  "endorsements": [{"media_type": "application/pkix-cert", "data_b64": "…"}]}

``data_b64`` is standard base64 of the exact bytes, which are never re-encoded. The report is
not signed as a whole: nothing in it counts until evidence binds it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.component import parse_digest
from cloister.strictjson import Json, JsonObject, decode_base64, parse_json_object

API_VERSION: Final = "aci/1"

MAX_REPORT_BYTES: Final = 8 * 1024 * 1024
MAX_ITEMS: Final = 64
MAX_ENDORSEMENTS: Final = 16
MAX_ITEM_BYTES: Final = 4 * 1024 * 1024
MAX_ENDORSEMENT_BYTES: Final = 256 * 1024

TEE_TYPE_TPM: Final = "tpm"

ITEM_QUOTE: Final = "tpm.quote"
ITEM_SIGNATURE: Final = "tpm.signature"
ITEM_EVENT_LOG: Final = "tpm.event_log"
ITEM_CLAIMS: Final = "claims"
ITEM_MANIFEST: Final = "manifest"
"""The bundle of the manifest that the worker runs under (`cloister.manifest.bundle`). Nothing binds
its bytes but its own signatures; the claims document names its digest."""

MEDIA_TYPE_QUOTE: Final = "application/vnd.cloister.tpms-attest"
MEDIA_TYPE_SIGNATURE: Final = "application/vnd.cloister.tpmt-signature"
MEDIA_TYPE_EVENT_LOG: Final = "application/vnd.cloister.tcg-event-log"
MEDIA_TYPE_CLAIMS: Final = "application/vnd.cloister.claims+json"
MEDIA_TYPE_MANIFEST: Final = "application/vnd.cloister.manifest-bundle+json"
MEDIA_TYPE_CERTIFICATE: Final = "application/pkix-cert"

_CODE: Final = "report_malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """Something that vouches for an item: here a DER certificate of the quoting key's chain."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceItem:
    """One named piece of evidence, with its endorsements, the leaf certificate first."""

    media_type: str
    data: bytes
    endorsements: tuple[Endorsement, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationReport:
    """A decoded report. Every field is what the sender says; a verifier recomputes each."""

    api_version: str
    keyset_digest: str
    tee_type: str
    """A hint at the evidence's format, never a claim."""
    keyset: JsonObject
    """The keyset as sent; `cloister.channel.keyset.parse_keyset` reads it."""
    report_data: bytes
    """32 bytes: the digest of the statement, according to the sender."""
    evidence: Mapping[str, EvidenceItem]
    source_provenance: JsonObject | None = None
    """Where the code comes from, according to the sender; no evidence binds it."""
    service_capabilities: JsonObject = field(default_factory=dict)

    def encode(self) -> bytes:
        """The report's JSON, as served."""
        attestation: JsonObject = {
            "tee_type": self.tee_type,
            "workload_keyset": self.keyset,
            "report_data": self.report_data.hex(),
            "evidence": {name: _encode_item(item) for name, item in self.evidence.items()},
        }
        if self.source_provenance is not None:
            attestation["source_provenance"] = self.source_provenance
        document: JsonObject = {
            "api_version": self.api_version,
            "workload_keyset_digest": self.keyset_digest,
            "attestation": attestation,
            "service_capabilities": self.service_capabilities,
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def parse_attestation_report(data: bytes) -> AttestationReport:
    """Decode a report of at most `MAX_REPORT_BYTES`; members it need not have are ignored.

    Raises MalformedError (code ``report_malformed``), and nothing else.
    """
    members = parse_json_object(data, limit=MAX_REPORT_BYTES, what="the report", code=_CODE)
    attestation = _object(members.get("attestation"), "attestation")
    provenance = attestation.get("source_provenance")
    return AttestationReport(
        api_version=_text(members.get("api_version"), "api_version"),
        keyset_digest=parse_digest(members.get("workload_keyset_digest"), code=_CODE),
        tee_type=_text(attestation.get("tee_type"), "tee_type"),
        keyset=_object(attestation.get("workload_keyset"), "workload_keyset"),
        report_data=_report_data(attestation.get("report_data")),
        evidence=_evidence(attestation.get("evidence")),
        source_provenance=(
            None if provenance is None else _object(provenance, "source_provenance")
        ),
        service_capabilities=_object(
            members.get("service_capabilities", {}), "service_capabilities"
        ),
    )


def _evidence(value: object) -> dict[str, EvidenceItem]:
    items = _object(value, "evidence")
    if len(items) > MAX_ITEMS:
        raise _malformed(f"has more than {MAX_ITEMS} pieces of evidence")
    return {name: _item(item) for name, item in items.items()}


def _item(value: object) -> EvidenceItem:
    members = _object(value, "a piece of evidence")
    endorsements = members.get("endorsements", [])
    if not isinstance(endorsements, list) or len(endorsements) > MAX_ENDORSEMENTS:
        raise _malformed(f"has endorsements that are no list of at most {MAX_ENDORSEMENTS}")
    media_type, data = _typed_bytes(members, MAX_ITEM_BYTES)
    return EvidenceItem(
        media_type=media_type,
        data=data,
        endorsements=tuple(_endorsement(entry) for entry in endorsements),
    )


def _endorsement(value: object) -> Endorsement:
    members = _object(value, "an endorsement")
    media_type, data = _typed_bytes(members, MAX_ENDORSEMENT_BYTES)
    return Endorsement(media_type=media_type, data=data)


def _typed_bytes(members: JsonObject, limit: int) -> tuple[str, bytes]:
    data = decode_base64(
        members.get("data_b64"), limit=limit, what="a data_b64 of the report", code=_CODE
    )
    return _text(members.get("media_type"), "media_type"), data


def _encode_item(item: EvidenceItem) -> JsonObject:
    encoded = _encode_typed(item.media_type, item.data)
    if item.endorsements:
        encoded["endorsements"] = [
            _encode_typed(entry.media_type, entry.data) for entry in item.endorsements
        ]
    return encoded


def _encode_typed(media_type: str, data: bytes) -> dict[str, Json]:
    return {"media_type": media_type, "data_b64": base64.b64encode(data).decode("ascii")}


def _object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise _malformed(f"has no object where {what} belongs")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise _malformed(f"has no text of at most 256 characters where {what} belongs")
    return value


def _report_data(value: object) -> bytes:
    text = _text(value, "report_data")
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise _malformed("has a report_data that is not 64 lower-case hex characters")
    return bytes.fromhex(text)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the report {why}", code=_CODE)
