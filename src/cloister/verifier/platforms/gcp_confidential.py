"""Verifies a Google Cloud confidential VM: SNP or TDX evidence, and its virtual TPM's quote.

Each is verified on its own (claims about ``cpu0`` and ``vtpm0``). What joins them is one value:
``gcp.same_challenge``, that both carry the same digest. That shows one party holding both at
once, not that Google's virtual TPM belongs to this guest, and the result says so: what the TPM
signs counts as the provider's word (``provider_asserted``), not as proven by hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.gcp import GcpEvidence, verify_gcp
from cloister.verifier.platforms.snp import SnpEvidence, verify_snp
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import Source

SAME_CHALLENGE: Final = "gcp.same_challenge"
VTPM: Final = "vtpm0"

NOT_JOINED: Final = (
    "That the virtual TPM is this guest's own rests on Google: the hardware's report does not name"
    " its key. So does all that the TPM's registers say, of the manifest too."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpConfidentialEvidence:
    """The processor's evidence and the virtual TPM's, over one challenge."""

    hardware: SnpEvidence | TdxEvidence
    vtpm: GcpEvidence


def verify_gcp_confidential(
    evidence: GcpConfidentialEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify both; `expected` is about the hardware's fields.

    Raises:
        ConfigurationError: `expected` names a field that the hardware's evidence does not have.
    """
    hardware = _hardware(
        evidence.hardware, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger
    )
    vtpm = verify_gcp(
        evidence.vtpm,
        policy=policy,
        roots=roots,
        at=at,
        expected=NOTHING_EXPECTED,
        ledger=ledger.on(VTPM).asserted(),
    )
    ledger.expect(SAME_CHALLENGE)
    joined = _same_challenge(hardware, vtpm, ledger)
    return Outcome(
        platform=f"{hardware.platform} on {vtpm.platform}",
        memory_confidentiality=hardware.memory_confidentiality,
        facts={**vtpm.facts, **hardware.facts},
        development=hardware.development or vtpm.development,
        bound=hardware.bound if joined else None,
        registers={**vtpm.registers, **hardware.registers} if joined else {},
        asserted=frozenset(vtpm.registers),
        not_proven=(NOT_JOINED, *dict.fromkeys((*hardware.not_proven, *vtpm.not_proven))),
    )


def _hardware(
    evidence: SnpEvidence | TdxEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    if isinstance(evidence, SnpEvidence):
        return verify_snp(
            evidence, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger
        )
    return verify_tdx(evidence, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger)


def _same_challenge(hardware: Outcome, vtpm: Outcome, ledger: Ledger) -> bool:
    """Report data is the challenge with zeros after it; extra data is the challenge."""
    if hardware.bound is None or vtpm.bound is None:
        return False
    return ledger.check(
        SAME_CHALLENGE,
        holds=bool(vtpm.bound) and hardware.bound == vtpm.bound.ljust(len(hardware.bound), b"\0"),
        affirmed="Hardware and virtual TPM answered the same challenge.",
        code="report_data_mismatch",
        refused="Hardware and virtual TPM answered different challenges.",
        source=Source.PROVIDER_ASSERTED,
    )
