"""Recorded collateral of Intel's, layer by layer, without the quotes' own signatures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.cases.folder import read_case
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.intel import (
    parse_collateral,
    parse_members,
    parse_pck_extensions,
)
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Vendor
from cloister.evidence.dcap import parse_quote
from cloister.evidence.tdx import TdReport
from cloister.verifier.appraise.intel_tcb import collateral_claims, judge_tcb, shortfalls
from cloister.verifier.authenticate.intel_collateral import authenticate_signed, check_signatures
from cloister.verifier.chain import authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import strict

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"
CASES = sorted(
    path.parent
    for platform in ("tdx", "sgx", "dstack")
    for path in (EVIDENCE / platform).glob("*/collateral.json")
    if path.parent.name != "neg-truncated"  # its quote does not decode
)
ROOTS = pinned_roots()

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def told(path: Path) -> dict[str, Any]:
    loaded = json.loads((path / "case.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_cases() -> None:
    assert len(CASES) >= 34


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_every_layer(path: Path) -> None:
    case, expected = read_case(path), told(path)
    quote = parse_quote(case.one("quote"))
    leaf, *issuers = map(parse_certificate, quote.certification.certificates)
    td_report = quote.body if isinstance(quote.body, TdReport) else None
    pck, anchors = parse_pck_extensions(leaf), ROOTS.vendor(Vendor.INTEL)
    ledger = Ledger()
    ledger.expect(*collateral_claims(quote.tee, ""))
    signed = check_signatures(parse_collateral(case.one("collateral")), roots=ROOTS)
    assert not signed.development
    found = authenticate_signed(signed, roots=ROOTS, at=case.at, ledger=ledger, prefix="")
    judgement = judge_tcb(
        signed.collateral,
        found is not None,
        tee=quote.tee,
        pck=pck,
        pck_chain=authenticate_chain(leaf, issuers, anchors=anchors, at=case.at),
        qe_report=quote.qe_report,
        td_report=td_report,
        policy=strict(),
        at=case.at,
        ledger=ledger,
        prefix="",
    )
    values = {claim.name: claim.value for claim in ledger.close(development=False)}
    layers = {name: word for name, word in expected["expected"]["layers"].items() if name in values}
    assert len(layers) >= 10
    assert {name: values[name] for name in layers} == layers
    facts = dict(expected["facts"]["collateral"])
    theirs = facts.pop("dcap_qvl_0_7_0")
    assert judgement.facts["collateral"] == facts
    if "status" in theirs:
        assert judgement.status == theirs["status"]
        assert list(judgement.advisory_ids or ()) == theirs["advisory_ids"]
    short = shortfalls(pck, None if td_report is None else td_report.tee_tcb_svn, parse_of(path))
    if judgement.status == "UpToDate":
        assert short == ()
    elif judgement.platform is not None and judgement.platform.status == "OutOfDate":
        assert short


def parse_of(path: Path) -> Any:
    return parse_members(parse_collateral((path / "collateral.json").read_bytes())).tcb_info


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_what_is_written_again_decodes_alike(path: Path) -> None:
    collateral = parse_collateral((path / "collateral.json").read_bytes())
    assert parse_collateral(collateral.encode()) == collateral


def test_two_issues_of_the_signing_certificate() -> None:
    """Its successor of May 2025 has the same key, so that either completes a chain."""
    path = EVIDENCE / "tdx" / "v5-td15"
    if not path.is_dir():
        pytest.skip("the case is not here")
    case = read_case(path)
    collateral = parse_collateral(case.one("collateral"))
    older = parse_collateral((EVIDENCE / "tdx" / "debug-td-v4" / "collateral.json").read_bytes())
    changed = dataclasses.replace(collateral, tcb_info_issuer_chain=older.tcb_info_issuer_chain)
    assert changed.tcb_info_issuer_chain != collateral.tcb_info_issuer_chain
    ledger = Ledger()
    signed = check_signatures(changed, roots=ROOTS)
    authenticate_signed(signed, roots=ROOTS, at=case.at, ledger=ledger, prefix="")
    assert ledger.holds("tcb_signer_chain", "tcb_info_sig", "qe_identity_sig")
