"""All the way: from a vendor's service through cache, bundle and report to a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.endorsements.bundle import encode_bundle, parse_bundle
from cloister.endorsements.cache import EndorsementCache
from cloister.endorsements.fetch.httpx2_transport import Httpx2Transport
from cloister.endorsements.fetch.vendors import Services, vendor_fetcher
from cloister.endorsements.needs import requests_for
from cloister.endorsements.staple import staple
from cloister.evidence.report import EvidenceItem
from cloister.verifier.evidence import run
from cloister.verifier.expected import Expected
from cloister.verifier.policy import AppraisalPolicy, strict
from cloister.verifier.report_items import HARDWARE
from cloister.verifier.result import AttestationResult, Finding
from support.published import AMD, CHIP, FMSPC, INTEL, NOW, ROOTS, Issue, publish_amd
from support.vendor_server import VendorServer, vendor_server

NONCE = bytes(range(64))
POLICY = replace(strict(), accept_development=True)
EXPECTED = Expected(prefixes={"report_data": NONCE[:32]})
EVIDENCE = {
    ("tdx", "tdx.quote"): INTEL.platform(fmspc=FMSPC).tdx_quote(report_data=NONCE),
    ("sev-snp", "snp.report"): AMD.report(CHIP, report_data=NONCE),
}


@pytest.fixture
def server() -> Iterator[VendorServer]:
    with vendor_server() as running:
        Issue().publish(running)
        publish_amd(running)
        yield running


def verdict(tee: str, item: str, data: EvidenceItem, policy: AppraisalPolicy) -> AttestationResult:
    verify, evidence = HARDWARE[tee].assemble({item: data})
    return run(verify, evidence, policy=policy, roots=ROOTS, at=NOW, expected=EXPECTED)


@pytest.mark.parametrize(("tee", "item"), EVIDENCE)
def test_from_the_service_to_the_verdict(
    server: VendorServer, tmp_path: Path, tee: str, item: str
) -> None:
    data = EVIDENCE[tee, item]
    url = server.url
    fetcher = vendor_fetcher(
        Httpx2Transport(), services=Services(amd_kds=url, intel_pcs=url), roots=ROOTS
    )
    here, there = (EndorsementCache(tmp_path / name, ROOTS) for name in ("here", "there"))
    needed = requests_for(data)
    for request in needed:
        here.get(request, fetcher, at=NOW)
    for artefact in parse_bundle(encode_bundle(here.entries()), name="bundle"):
        there.put(artefact)
    carried = [there.peek(request) for request in needed]
    stapled = EvidenceItem(
        media_type="x",
        data=data,
        endorsements=staple(artefact for artefact in carried if artefact is not None),
    )
    found = verdict(tee, item, stapled, POLICY)
    assert {claim.finding for claim in found.claims} == {Finding.AFFIRMING}, found
    bare = EvidenceItem(media_type="x", data=data)
    assert verdict(tee, item, bare, POLICY).failures
