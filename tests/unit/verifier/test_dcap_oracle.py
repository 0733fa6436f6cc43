"""Recorded quotes with collateral, judged here and by `dcap-qvl`, which shares no code with us.

Event logs and expectations of a case are left out: that library judges quotes alone.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]  # its stubs are not marked as such
import pytest

from cloister.cli.cases.folder import CaseFiles, read_case
from cloister.endorsements.pinned import pinned_roots
from cloister.verifier.evidence import run
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, strict
from cloister.verifier.result import AttestationResult, Finding

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence"
CASES = sorted(
    path.parent
    for platform in ("tdx", "sgx", "dstack")
    for path in (EVIDENCE / platform).glob("*/collateral.json")
)

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]

ANY_STATE: Final = dataclasses.replace(
    strict(), tcb_statuses=UNCHECKED, tcb_accepted_advisories=UNCHECKED
)

WORDS: Final = {
    "Debug mode is enabled": "debug",
    "Fmspc mismatch": "fmspc_mismatch",
    "ISV enclave report signature is invalid": "bad_signature",
    "No matching TCB level found": "tcb_no_match",
    "QE report hash mismatch": "bad_ak_binding",
    "Signature is invalid for tcb_info": "collateral_signature",
    "TCBInfo expired": "expired",
    "TCBInfo issue date is in the future": "expired",
    "Unsupported QE Identity id/version": "qe_identity_mismatch",
    "Failed to decode quote": "malformed",
    "Failed to parse quote": "malformed",
}
"""What that library says of a quote it refuses, and the code of our claim."""

DIFFERENCES: Final = {
    "tdx/neg-pck-crl-signature": "it says that a chain failed, and we that it is a revocation list",
}
"""Cases that both refuse, in words that do not mean the same, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """What the library found: claims, or the words of its error."""

    claims: dict[str, Any] | None
    error: str


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def theirs(case: CaseFiles, policy: dcap_qvl.QuotePolicy) -> Theirs:
    collateral = dcap_qvl.QuoteCollateralV3.from_json(case.one("collateral").decode())
    at = int(case.at.timestamp())
    try:
        claims = dcap_qvl.QuoteVerifier().verify_with_policy(
            case.one("quote"), collateral, at, policy
        )
    except ValueError as error:
        return Theirs(claims=None, error=str(error))
    loaded = json.loads(claims.to_json())
    assert isinstance(loaded, dict)
    return Theirs(claims=loaded, error="")


def ours(case: CaseFiles, policy: AppraisalPolicy) -> AttestationResult:
    quote, collateral = case.one("quote"), case.one("collateral")
    if case.platform == "sgx":
        evidence: object = SgxEvidence(quote=quote, collateral=collateral)
        return run(verify_sgx, evidence, policy=policy, roots=pinned_roots(), at=case.at)
    evidence = TdxEvidence(quote=quote, collateral=collateral)
    return run(verify_tdx, evidence, policy=policy, roots=pinned_roots(), at=case.at)


def values(result: AttestationResult) -> dict[str, str | None]:
    return {claim.name.partition(".")[2]: claim.value for claim in result.claims}


def test_there_are_cases() -> None:
    assert len(CASES) >= 30
    assert set(DIFFERENCES) <= set(map(name_of, CASES))


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_authenticity_and_states(path: Path) -> None:
    """Any state accepted: what is left is whether the quote is genuine, and what its states are."""
    case = read_case(path)
    their = theirs(case, dcap_qvl.QuotePolicy.claims_only(int(case.at.timestamp())))
    our = ours(case, ANY_STATE)
    if their.claims is None:
        assert our.verdict is not Finding.AFFIRMING
        word = next((code for words, code in WORDS.items() if words in their.error), their.error)
        assert name_of(path) in DIFFERENCES or our.failures[0].code == word
        return
    assert our.verdict is Finding.AFFIRMING, our.failures
    found = values(our)
    assert found["tcb_status"] == their.claims["tcb"]["status"]
    assert found["platform_tcb"] == their.claims["platform"]["tcb_level"]["tcbStatus"]
    assert found["qe_tcb"] == their.claims["qe"]["tcb_level"]["tcbStatus"]
    listed = their.claims["tcb"]["advisory_ids"]
    assert found["tcb_advisories"] == (",".join(sorted(listed)) or "none")
    pck = our.facts["pck"]
    assert isinstance(pck, dict)
    assert pck["ppid"] == bytes(their.claims["platform"]["pck"]["ppid"]).hex()
    assert pck["fmspc"] == bytes(their.claims["platform"]["pck"]["fmspc"]).hex()


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_verdict(path: Path) -> None:
    """Only platforms that are up to date, whatever kind of machine they are."""
    case = read_case(path)
    policy = (
        dcap_qvl.QuotePolicy.strict(int(case.at.timestamp()))
        .allow_dynamic_platform(True)
        .allow_cached_keys(True)
        .allow_smt(True)
        .accepted_sgx_types([0, 1, 2])
    )
    affirmed = ours(case, strict()).verdict is Finding.AFFIRMING
    assert affirmed == (theirs(case, policy).claims is not None)
