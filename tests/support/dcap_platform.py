"""Quotes of a simulated Intel platform and all that belongs to them, to change one thing in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.intel_tcb_info import SGX, TDX
from cloister.endorsements.roots import Roots
from cloister.testing.simulated_dcap import SimulatedIntel, SimulatedPlatform
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.dcap import CollateralInput
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import AppraisalPolicy, as_captured, strict
from cloister.verifier.result import AttestationResult, Claim, Finding

NOW: Final = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NONCE: Final = hashlib.sha512(b"nonce").digest()
INTEL: Final = SimulatedIntel(now=NOW)
PLATFORM: Final = INTEL.platform()
POLICY: Final = dataclasses.replace(strict(), accept_development=True)
LENIENT: Final = as_captured(POLICY)
COLLATERAL: Final = {"tdx": INTEL.collateral(TDX), "sgx": INTEL.collateral(SGX)}

TEES = pytest.mark.parametrize("tee", ["tdx", "sgx"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A verdict, and what comes of it beyond the claims."""

    result: AttestationResult
    outcome: Outcome

    @property
    def reason(self) -> str | None:
        failures = self.result.failures
        worst = [claim for claim in failures if claim.finding is self.result.verdict]
        return worst[0].code if worst else None

    @property
    def affirmed(self) -> bool:
        return self.result.verdict is Finding.AFFIRMING

    def claim(self, name: str) -> Claim:
        return next(c for c in self.result.claims if c.name.partition(".")[2] == name)

    def failed(self) -> set[str]:
        return {
            claim.name.partition(".")[2]
            for claim in self.result.claims
            if claim.finding is Finding.CONTRAINDICATED
        }


def quoted(tee: str, platform: SimulatedPlatform = PLATFORM, **fields: bytes | int) -> bytes:
    arguments: dict[str, Any] = {"report_data": NONCE, **fields}
    return platform.tdx_quote(**arguments) if tee == "tdx" else platform.sgx_quote(**arguments)


def verified(
    tee: str,
    quote: bytes,
    *,
    collateral: CollateralInput | str | None = "its own",
    certificates: tuple[bytes, ...] = (),
    policy: AppraisalPolicy = POLICY,
    roots: Roots = INTEL.roots,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> Found:
    given: Any = COLLATERAL[tee] if collateral == "its own" else collateral
    kept: list[Outcome] = []
    kind, verify = (TdxEvidence, verify_tdx) if tee == "tdx" else (SgxEvidence, verify_sgx)

    def keeping(evidence: object, **arguments: Any) -> Outcome:
        call: Callable[..., Outcome] = verify
        kept.append(call(evidence, **arguments))
        return kept[0]

    evidence = kind(quote=quote, collateral=given, certificates=certificates)
    result = run(keeping, evidence, policy=policy, roots=roots, at=at, expected=expected)
    return Found(result=result, outcome=kept[0])


def der(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)
