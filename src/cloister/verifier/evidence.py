"""Verifies evidence on its own: a quote, a report, a document, with what vouches for it.

One function for every platform. Steps are those of the platform's own module
(`cloister.verifier.platforms`); here they are joined to one result, and what holds for all
platforms is asked last: whether the policy accepts development platforms. How memory is protected
is stated in the result, and not compared: evidence on its own seals nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeAlias

from cloister.endorsements.roots import Roots
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult

DEVELOPMENT: Final = "platform.development"

Verify: TypeAlias = Callable[..., Outcome]


def conclude(
    outcome: Outcome, *, policy: AppraisalPolicy, at: datetime, ledger: Ledger
) -> AttestationResult:
    """Close the ledger over `outcome`; the last claim is whether the platform may affirm at all."""
    ledger.expect(DEVELOPMENT)
    ledger.check(
        DEVELOPMENT,
        holds=policy.accept_development or not outcome.development,
        affirmed=(
            "The platform is simulated, which the policy accepts by name."
            if outcome.development
            else "The platform is no simulated one."
        ),
        code="development_refused",
        refused=(
            "The evidence comes from a simulated platform, which proves nothing to anyone but its"
            " owner; only a policy that names development accepts it."
        ),
    )
    platform = f"development ({outcome.platform})" if outcome.development else outcome.platform
    return AttestationResult(
        platform=platform,
        development=outcome.development,
        memory_confidentiality=_memory(outcome),
        claims=ledger.close(development=outcome.development, proven=_is_authenticated(outcome)),
        not_proven=outcome.not_proven,
        appraised_at=at.astimezone(UTC),
        policy_id=policy.policy_id,
        facts=outcome.facts,
    )


def _memory(outcome: Outcome) -> str:
    """Nothing protects a simulated platform's memory, nor is anything known of a forged one's.

    Evidence that was not asked to carry anything has nothing bound, and may be genuine.
    """
    genuine = _is_authenticated(outcome) and not outcome.development
    return outcome.memory_confidentiality if genuine else "none"


def _is_authenticated(outcome: Outcome) -> bool:
    return outcome.bound is not None or bool(outcome.registers)


def run(
    verify: Verify,
    evidence: object,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    """Run one platform's `verify` on `evidence` and conclude."""
    if at.tzinfo is None:
        raise ValueError("the time of verification needs a time zone")
    ledger = Ledger()
    outcome = verify(evidence, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger)
    return conclude(outcome, policy=policy, at=at, ledger=ledger)
