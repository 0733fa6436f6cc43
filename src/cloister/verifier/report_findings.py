"""What every report goes through, whatever its platform: reading, and what its own words bind.

Steps 1 to 3, 5 and 7 of `cloister.verifier.report`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from cloister.channel.claims import ClaimsDocument, parse_claims
from cloister.channel.keyset import Keyset, parse_keyset
from cloister.channel.statement import StatementDigest
from cloister.errors import MalformedError
from cloister.evidence.report import (
    API_VERSION,
    ITEM_CLAIMS,
    TEE_TYPE_TPM,
    AttestationReport,
    parse_attestation_report,
)
from cloister.verifier.authenticate.tpm import StatementDigests, TpmLaunch
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome

DEVELOPMENT_PLATFORM: Final = "development (software TPM)"

FORMAT: Final = "report.format"
PLATFORM: Final = "report.platform"
KEYSET_FORMAT: Final = "keyset.format"
REPORT_DATA: Final = "report.data"
CLAIMS_BOUND: Final = "claims.bound"
CLAIMS_CONSISTENT: Final = "claims.consistent"


@dataclass(slots=True)
class Findings:
    """What the steps found on the way, as far as they came."""

    report: AttestationReport | None = None
    keyset: Keyset | None = None
    keyset_digest: str = ""
    launch: Authenticated[TpmLaunch] | None = None
    outcome: Outcome | None = None
    """What the evidence of a hardware platform shows."""
    gpus: Outcome | None = None
    claims_document: ClaimsDocument | None = None
    claims_bytes: bytes = b""


def read_report(data: bytes, found: Findings, ledger: Ledger, *, hardware: Container[str]) -> None:
    """Steps 1 to 3. `hardware` are the values of ``tee_type`` that can be checked besides TPMs."""
    try:
        report = parse_attestation_report(data)
    except MalformedError as error:
        ledger.refuse(FORMAT, error.code, f"The report does not decode: {error}.")
        return
    found.report = report
    ledger.check(
        FORMAT,
        holds=report.api_version == API_VERSION,
        affirmed=f"The report is a well-formed report of {API_VERSION}.",
        code="report_version",
        refused=f"The report is not one of {API_VERSION}.",
    )
    if report.tee_type == TEE_TYPE_TPM:
        ledger.affirm(PLATFORM, f"The platform is {DEVELOPMENT_PLATFORM}.")
    elif report.tee_type in hardware:
        ledger.affirm(
            PLATFORM, f"The report says that it is from {report.tee_type}; its evidence decides."
        )
    else:
        ledger.undecided(
            PLATFORM,
            "platform_unsupported",
            "The report is from a platform that this verifier cannot check.",
        )
    try:
        found.keyset = parse_keyset(report.keyset)
        found.keyset_digest = found.keyset.digest
    except MalformedError as error:
        ledger.refuse(KEYSET_FORMAT, "keyset_malformed", f"The keyset does not decode: {error}.")
        return
    ledger.affirm(KEYSET_FORMAT, f"The worker's keyset is well-formed: {found.keyset_digest}.")


def statements_of(
    report: AttestationReport, keyset_digest: str, nonce: bytes, statement: StatementDigest
) -> StatementDigests:
    """The digests that evidence may carry, built from our own nonce and our own digest."""
    expected, named = statement(keyset_digest, nonce), report.keyset_digest
    return StatementDigests(
        expected=expected,
        named=expected if named == keyset_digest else statement(named, nonce),
        unchallenged=statement(keyset_digest, None),
    )


def check_report_data(
    report: AttestationReport, statements: StatementDigests, ledger: Ledger
) -> None:
    """Step 5."""
    ledger.check(
        REPORT_DATA,
        holds=report.report_data == statements.expected,
        affirmed="The report names the digest of your challenge and its keys.",
        code="report_data_mismatch",
        refused="The report names another digest than that of your challenge and its keys.",
    )


def read_claims_document(
    found: Findings, report: AttestationReport, keyset: Keyset, ledger: Ledger
) -> None:
    """Step 7: the document's own bytes are hashed, whatever they say about themselves."""
    item = report.evidence.get(ITEM_CLAIMS)
    try:
        if item is None or hashlib.sha256(item.data).digest() != keyset.claims_digest:
            ledger.refuse(
                CLAIMS_BOUND,
                "claims_unbound",
                "The claims document is missing, or not the one that the keyset names.",
            )
            return
        found.claims_document = parse_claims(item.data)
        found.claims_bytes = item.data
    except MalformedError as error:
        ledger.refuse(CLAIMS_BOUND, "claims_unbound", f"The claims document is refused: {error}.")
        return
    ledger.affirm(CLAIMS_BOUND, "The claims document is the one that the keyset names.")
