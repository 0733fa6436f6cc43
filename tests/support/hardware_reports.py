"""Workers on simulated hardware platforms, and how their reports are judged."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from cloister.channel.claims import ClaimsDocument
from cloister.endorsements.roots import Roots
from cloister.evidence.report import AttestationReport
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
OTHER = bytes(32)
PLATFORMS = (
    *("snp", "tdx", "sgx", "nitro", "nitro-tpm", "azure-snp"),
    *("gcp-snp", "gcp-tdx", "gcp-vtpm", "tpm"),
)
WORKERS = {name: SimulatedHardware.make(name, now=NOW) for name in PLATFORMS}


def verify(
    worker: SimulatedHardware,
    report: AttestationReport | None = None,
    *,
    nonce: bytes = NONCE,
    under: AppraisalPolicy | None = None,
    values: ReferenceValues | None = None,
    roots: Roots | None = None,
    at: datetime = NOW,
) -> AttestationResult:
    return verify_report(
        (worker.attestation_report(NONCE) if report is None else report).encode(),
        nonce=nonce,
        policy=policy.development() if under is None else under,
        reference_values=worker.reference_values if values is None else values,
        roots=worker.roots if roots is None else roots,
        at=at,
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    assert result.verdict is not Finding.AFFIRMING
    assert result.attester is None
    return {
        claim.name: claim.code
        for claim in result.failures
        if claim.finding is Finding.CONTRAINDICATED
    }


def with_data(report: AttestationReport, name: str, data: bytes) -> AttestationReport:
    changed = dataclasses.replace(report.evidence[name], data=data)
    return dataclasses.replace(report, evidence={**report.evidence, name: changed})


def documented(worker: SimulatedHardware, document: ClaimsDocument) -> SimulatedHardware:
    """`worker` with another claims document, and a keyset that names it."""
    keyset = dataclasses.replace(worker.worker.keyset, subject=document.subject)
    changed = dataclasses.replace(worker.worker, claims_document=document, keyset=keyset)
    return dataclasses.replace(worker, worker=changed)
