"""Verifies evidence of an AWS Nitro Enclave: an attestation document.

Steps: ``nitro.document`` (it decodes), `cloister.verifier.authenticate.nitro`,
`cloister.verifier.appraise.nitro`, and what the caller expects.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.nitro import DocumentKind, NitroDocument, parse_document, unwrap_document
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import nitro as appraise
from cloister.verifier.authenticate import nitro as authenticate
from cloister.verifier.authenticate.nitro import Authentication
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy, Unchecked

DOCUMENT: Final = "nitro.document"

PLATFORM: Final = "AWS Nitro Enclaves"
MEMORY: Final = "nitro"

NOT_PROVEN: Final = (
    "AWS and its hypervisor are trusted: an enclave's memory is kept from the instance beside it,"
    " not encrypted against whoever runs the machine.",
    "Revocation of certificates is not checked, as AWS asks: those of enclaves live for hours.",
    "What the registers should hold is only known where you compare them with reference values.",
)
UNCHECKED_AGE: Final = (
    "How long ago the document was made is not limited, but for its certificates."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroEvidence:
    """An attestation document, as it came: in any wrapper that `unwrap_document` knows."""

    document: bytes


def claim_names(policy: AppraisalPolicy, expected: Expected) -> tuple[str, ...]:
    """Names of all claims about a document, in order."""
    return (DOCUMENT, *authenticate.CLAIMS, *appraise.claims(policy), *expected.names)


def verify_nitro(
    evidence: NitroEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no document has.
    """
    check_names(expected, appraise.FIELD_NAMES)
    ledger.expect(*claim_names(policy, expected))
    document = read_document(evidence.document, ledger)
    if document is None:
        return Outcome(platform=PLATFORM, memory_confidentiality=MEMORY, facts={})
    found = authenticate.authenticate_nitro(document, roots=roots, at=at, ledger=ledger)
    authenticated = found.document is not None and found.chain is not None
    if found.document is not None and found.chain is not None:
        appraise.appraise_nitro(found.document, found.chain, policy=policy, at=at, ledger=ledger)
    else:
        appraise.appraise_stated(document, found.chain, policy=policy, at=at, ledger=ledger)
    compare(expected, appraise.fields(document), ledger if authenticated else ledger.stated())
    return _outcome(document, found, policy, authenticated=authenticated)


def read_document(data: bytes, ledger: Ledger) -> NitroDocument | None:
    """Decode a document of either kind, with the claim `DOCUMENT`."""
    try:
        document = parse_document(unwrap_document(data))
    except MalformedError as error:
        ledger.refuse(DOCUMENT, error.code, f"The attestation document does not decode: {error}.")
        return None
    ledger.affirm(DOCUMENT, "The attestation document is well-formed.")
    return document


def _outcome(
    document: NitroDocument, found: Authentication, policy: AppraisalPolicy, *, authenticated: bool
) -> Outcome:
    anchor = None if found.chain is None else found.chain.anchor
    unlimited = isinstance(policy.max_evidence_age_s, Unchecked)
    # Registers of an instance's NitroTPM have the same numbers, and other meanings.
    proven = authenticated and document.kind is DocumentKind.ENCLAVE
    return Outcome(
        platform=PLATFORM,
        memory_confidentiality=MEMORY,
        facts=document_facts(document, found),
        development=anchor is not None and anchor.development,
        bound=document.user_data if proven else None,
        registers=appraise.registers(document) if proven else {},
        not_proven=(*NOT_PROVEN, *((UNCHECKED_AGE,) if unlimited else ())),
    )


def document_facts(document: NitroDocument, found: Authentication) -> JsonObject:
    """What a document says, of either kind; worth what the claims are."""
    facts: JsonObject = {
        "module_id": document.module_id,
        "digest": "SHA384",
        "timestamp": document.timestamp.isoformat(timespec="microseconds"),
        "document_bytes": len(document.raw),
        "cose_tagged": document.tagged,
        "pcrs": {str(index): value.hex() for index, value in document.pcrs.items()},
        "public_key": _hex(document.public_key),
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "root_sha256": hashlib.sha256(document.cabundle[0]).hexdigest(),
        "cabundle_certificates": len(document.cabundle),
    }
    if found.chain is not None:
        leaf = found.chain.leaf
        facts["leaf_not_before"] = leaf.not_valid_before_utc.isoformat()
        facts["leaf_not_after"] = leaf.not_valid_after_utc.isoformat()
    return facts


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
