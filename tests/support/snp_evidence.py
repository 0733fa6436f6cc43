"""SEV-SNP evidence of simulated chips, and its twin with other fields."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.endorsements.roots import Roots
from cloister.evidence.snp import Product, SigningKey
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.snp import SnpEvidence, verify_snp
from cloister.verifier.policy import AppraisalPolicy, as_captured, development
from cloister.verifier.result import AttestationResult

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AMD = SimulatedAmd(now=NOW)
GENOA = SimulatedAmd(now=NOW, product=Product.GENOA)
TURIN = SimulatedAmd(now=NOW, product=Product.TURIN)
KEY = AMD.key()
VLEK = AMD.key(SigningKey.VLEK)
GOOD = AMD.evidence(KEY, crls=[AMD.crl()])
POLICY = development()
CAPTURED = as_captured(POLICY)


def result(
    evidence: SnpEvidence,
    policy: AppraisalPolicy = POLICY,
    *,
    amd: SimulatedAmd = AMD,
    roots: Roots | None = None,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    return run(
        verify_snp, evidence, policy=policy, roots=roots or amd.roots, at=at, expected=expected
    )


def codes(found: AttestationResult) -> dict[str, str | None]:
    """What is refused, or cannot be decided for a reason of its own."""
    return {
        claim.name: claim.code
        for claim in found.failures
        if claim.code not in {"not_checked", "unauthenticated"}
    }


def outcome(evidence: SnpEvidence, policy: AppraisalPolicy = POLICY) -> Outcome:
    return verify_snp(
        evidence,
        policy=policy,
        roots=AMD.roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def values(found: AttestationResult) -> dict[str, str | None]:
    return {claim.name: claim.value for claim in found.claims}


def with_fields(*, version: int = 3, **fields: int | bytes | None) -> SnpEvidence:
    return AMD.evidence(KEY, crls=[AMD.crl()], version=version, **fields)


def check(
    altered: SnpEvidence,
    expected: dict[str, str | None],
    *,
    good: SnpEvidence = GOOD,
    policy: AppraisalPolicy = POLICY,
    amd: SimulatedAmd = AMD,
) -> AttestationResult:
    """`good` affirms, and `altered` is refused for exactly what is expected."""
    assert codes(result(good, policy, amd=amd)) == {}
    found = result(altered, policy, amd=amd)
    assert codes(found) == expected
    return found
