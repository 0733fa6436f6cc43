"""AMD's own revocation lists, which recorded cases do not name, with recorded reports."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.cli.cases import snp
from cloister.cli.cases.folder import read_case
from cloister.endorsements.pinned import pinned_roots
from cloister.verifier.evidence import run
from cloister.verifier.platforms.snp import NOT_PROVEN_REVOCATION, SnpEvidence
from cloister.verifier.policy import AppraisalPolicy, as_captured, strict
from cloister.verifier.result import AttestationResult, Finding

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"
LISTS = EVIDENCE / "roots" / "amd"

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]

CURRENT = datetime(2026, 3, 1, tzinfo=UTC)


def result(
    name: str, *lists: str, policy: AppraisalPolicy, at: datetime = CURRENT
) -> AttestationResult:
    case = read_case(EVIDENCE / "snp" / name)
    evidence = snp.read(case).evidence
    assert isinstance(evidence, SnpEvidence)
    crls = tuple((LISTS / one).read_bytes() for one in lists)
    evidence = dataclasses.replace(evidence, crls=crls)
    return run(snp.VERIFY, evidence, policy=policy, roots=pinned_roots(), at=at)


def codes(found: AttestationResult) -> dict[str, str | None]:
    return {claim.name: claim.code for claim in found.failures if claim.code != "unauthenticated"}


@pytest.mark.parametrize("name", ["ms-milan", "oak-milan-cb", "virtee-milan"])
def test_the_strict_policy_is_content_with_a_current_list(name: str) -> None:
    bare = result(name, policy=strict())
    assert codes(bare) == {"snp.revocation": "endorsements_missing"}
    found = result(name, "ark_milan.crl", policy=strict())
    assert found.verdict is Finding.AFFIRMING
    assert not found.development
    assert NOT_PROVEN_REVOCATION not in found.not_proven


def test_a_list_that_is_no_longer_current() -> None:
    found = result("ms-genoa", "ark_genoa.crl", policy=strict())
    assert codes(found) == {"snp.time": "expired"}


def test_a_list_of_another_product() -> None:
    found = result("ms-milan", "ark_genoa.crl", policy=as_captured(strict()))
    assert codes(found) == {"snp.revocation": "endorsements_missing"}
