"""Verifies evidence of an SGX enclave: a DCAP quote and its collateral.

Steps, in the order of the claims: the quote (`cloister.verifier.authenticate.dcap`), what kind of
enclave it shows (`cloister.verifier.appraise.sgx`), its platform by Intel's collateral
(`cloister.verifier.platforms.dcap`), and what the caller expects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.evidence.sgx import EnclaveReport
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import sgx as appraise
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.dcap import (
    CollateralInput,
    JudgedQuote,
    claims_after,
    claims_before,
    judge_quote,
)
from cloister.verifier.policy import AppraisalPolicy

PREFIX: Final = "sgx."
PLATFORM: Final = "Intel SGX"
MEMORY: Final = "sgx"
NO_MEMORY: Final = "none"

REGISTER_NAMES: Final = (
    "mrenclave",
    "mrsigner",
    "isvprodid",
    "isvsvn",
    "config_id",
    "config_svn",
    "isvextprodid",
    "isvfamilyid",
    "attributes",
    "miscselect",
)
FIELD_NAMES: Final = ("report_data", *REGISTER_NAMES)
"""What a caller may expect something of; numbers are 2 bytes, little-endian."""

NOT_PROVEN: Final = (
    "What MRENCLAVE or MRSIGNER should be is only known where you compare them with reference"
    " values.",
    "CONFIGID and CONFIGSVN are chosen by whoever starts the enclave.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxEvidence:
    """A quote of an SGX enclave, with what came beside it."""

    quote: bytes
    """As it came; zeros may follow it."""
    collateral: CollateralInput | None = field(default=None, repr=False)
    certificates: tuple[bytes, ...] = ()
    """The platform's certificate and its issuers (DER), for quotes that do not hold them."""


def claim_names(
    evidence: SgxEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of all claims about `evidence`, in order."""
    return (
        *claims_before(PREFIX),
        *appraise.CLAIMS,
        *claims_after("sgx", PREFIX, collateral=evidence.collateral, policy=policy),
        *expected.names,
    )


def verify_sgx(
    evidence: SgxEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no SGX quote has.
    """
    check_names(expected, FIELD_NAMES)
    ledger.expect(*claim_names(evidence, policy, expected))
    judged = judge_quote(
        evidence.quote,
        tee="sgx",
        prefix=PREFIX,
        collateral=evidence.collateral,
        certificates=evidence.certificates,
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    if judged is None or not isinstance(judged.quote.body, EnclaveReport):
        return Outcome(platform=PLATFORM, memory_confidentiality=MEMORY, facts={})
    report = judged.quote.body
    if judged.authenticated is not None:
        appraise.appraise_enclave(judged.authenticated, policy=policy, ledger=ledger)
    else:
        appraise.appraise_stated_enclave(report, policy=policy, ledger=ledger)
    compare(expected, fields(report), ledger if judged.proven else ledger.stated())
    return _outcome(judged, report)


def fields(report: EnclaveReport) -> dict[str, bytes | None]:
    """The values of `FIELD_NAMES`."""
    return {
        "report_data": report.report_data,
        "mrenclave": report.mrenclave,
        "mrsigner": report.mrsigner,
        "isvprodid": report.isvprodid.to_bytes(2, "little"),
        "isvsvn": report.isvsvn.to_bytes(2, "little"),
        "config_id": report.config_id,
        "config_svn": report.config_svn.to_bytes(2, "little"),
        "isvextprodid": report.isvextprodid,
        "isvfamilyid": report.isvfamilyid,
        "attributes": report.attributes,
        "miscselect": report.miscselect,
    }


def registers(report: EnclaveReport) -> dict[str, bytes]:
    """The values of `REGISTER_NAMES`."""
    found = fields(report)
    return {name: value for name in REGISTER_NAMES if (value := found[name]) is not None}


def _outcome(judged: JudgedQuote, report: EnclaveReport) -> Outcome:
    return Outcome(
        platform=PLATFORM,
        # A debugger outside reads what the hardware encrypts.
        memory_confidentiality=NO_MEMORY if report.debug else MEMORY,
        facts=judged.facts | _facts(report),
        development=judged.development,
        bound=report.report_data if judged.proven else None,
        registers=registers(report) if judged.proven else {},
        not_proven=(*judged.not_proven, *NOT_PROVEN),
    )


def _facts(report: EnclaveReport) -> JsonObject:
    facts: JsonObject = {
        name: value.hex() for name, value in fields(report).items() if value is not None
    }
    return facts | {
        "cpusvn": report.cpusvn.hex(),
        "isvprodid": report.isvprodid,
        "isvsvn": report.isvsvn,
        "config_svn": report.config_svn,
    }
