"""A result cannot be mistaken for a yes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.errors import AppraisalError, UnsupportedError
from cloister.verifier.result import AffirmedAttester, AttestationResult, Claim, Finding, Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ATTESTER = AffirmedAttester(
    platform="development (software TPM)",
    development=True,
    keyset_digest="sha256:" + "0" * 64,
    keyset=object(),
    claims_document={},
    expires_at=NOW,
)


def claim(finding: Finding, name: str = "c") -> Claim:
    return Claim(
        name=name,
        finding=finding,
        source=Source.VERIFIER_DERIVED,
        explanation=f"{name} was found {finding}",
        code=None if finding is Finding.AFFIRMING else f"code.{name}",
    )


def result(*claims: Claim, attester: AffirmedAttester | None = ATTESTER) -> AttestationResult:
    return AttestationResult(
        platform="development (software TPM)",
        development=True,
        memory_confidentiality="none",
        claims=claims,
        not_proven=(),
        appraised_at=NOW,
        policy_id="sha256:" + "0" * 64,
        attester=attester,
    )


GOOD = claim(Finding.AFFIRMING, "good")


def test_all_affirming_gives_the_attester() -> None:
    assert result(GOOD, GOOD).require_affirming() is ATTESTER


def test_not_a_boolean() -> None:
    with pytest.raises(TypeError, match="require_affirming"):
        bool(result(GOOD))


@pytest.mark.parametrize("finding", [Finding.WARNING, Finding.CONTRAINDICATED])
def test_a_finding_against_it_raises_with_its_code_and_the_result(finding: Finding) -> None:
    refused = result(GOOD, claim(finding, "bad"), GOOD)
    with pytest.raises(AppraisalError) as caught:
        refused.require_affirming()
    assert caught.value.code == "code.bad"
    assert caught.value.result is refused
    assert refused.verdict is finding


def test_the_worst_finding_decides() -> None:
    mixed = result(
        claim(Finding.NONE, "open"),
        claim(Finding.WARNING, "odd"),
        claim(Finding.CONTRAINDICATED, "bad"),
    )
    assert mixed.verdict is Finding.CONTRAINDICATED
    assert [failure.name for failure in mixed.failures] == ["open", "odd", "bad"]
    with pytest.raises(AppraisalError, match="bad was found"):
        mixed.require_affirming()


def test_undecided_is_never_a_pass() -> None:
    with pytest.raises(UnsupportedError):
        result(GOOD, claim(Finding.NONE, "open")).require_affirming()
    with pytest.raises(UnsupportedError):
        result().require_affirming()
    with pytest.raises(UnsupportedError):
        result(GOOD, attester=None).require_affirming()
