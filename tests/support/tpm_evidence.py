"""Evidence of a TPM that booted and quotes, its key certified, to change one thing in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = b"a challenge"
VENDOR = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
STRICT = policy.development()
LENIENT = replace(STRICT, require_endorsements=False)

SHA256 = int(Alg.SHA256)


def booted(*, secure_boot: bool = True) -> SimulatedVtpm:
    vtpm = SimulatedVtpm()
    vtpm.boot(secure_boot=secure_boot)
    return vtpm


BOOTED = booted()


def certified(vtpm: SimulatedVtpm = BOOTED, **options: object) -> AkEvidence:
    certificate = VENDOR.certify(vtpm.key.public_key(), **options)  # type: ignore[arg-type]
    return AkEvidence(certificate=certificate, intermediates=VENDOR.intermediates)


def evidence_of(vtpm: SimulatedVtpm, quote: QuoteEvidence | None = None) -> TpmEvidence:
    return TpmEvidence(
        quote=vtpm.quote(NONCE) if quote is None else quote,
        ak_public=vtpm.public(),
        ak=certified(vtpm),
        event_log=vtpm.event_log(),
    )


GENUINE = evidence_of(BOOTED)
QUOTE = BOOTED.quote(NONCE)


def verify(
    evidence: TpmEvidence,
    expected: Expected = NOTHING_EXPECTED,
    *,
    policy: AppraisalPolicy = STRICT,
    roots: Roots = VENDOR.roots,
    at: datetime = NOW,
) -> AttestationResult:
    return run(verify_tpm, evidence, policy=policy, roots=roots, at=at, expected=expected)


def outcome(evidence: TpmEvidence, *, policy: AppraisalPolicy = STRICT) -> Outcome:
    return verify_tpm(
        evidence,
        policy=policy,
        roots=VENDOR.roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def with_quote(**changes: object) -> TpmEvidence:
    return replace(GENUINE, quote=replace(QUOTE, **changes))  # type: ignore[arg-type]


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
