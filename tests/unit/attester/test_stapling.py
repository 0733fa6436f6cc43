"""A worker's evidence with what vouches for it: from a vendor's service to the client's verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cloister.attester.stapling import StaplingAttester
from cloister.endorsements.cache import EndorsementCache
from cloister.endorsements.fetch.fetcher import Fetcher
from cloister.endorsements.fetch.httpx2_transport import Httpx2Transport
from cloister.endorsements.fetch.vendors import Services, vendor_fetcher
from cloister.evidence.report import EvidenceItem
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding
from support.published import AMD, CHIP, FMSPC, INTEL, NOW, ROOTS, Issue, publish_amd
from support.vendor_server import VendorServer, vendor_server

NONCE = bytes(range(32))
ITEMS = {"snp": "snp.report", "tdx": "tdx.quote"}


class Bare:
    """A machine that hands out its evidence, and nothing that vouches for it."""

    def __init__(self, platform: str) -> None:
        self._platform = platform

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        slot = statement_digest.ljust(64, b"\0")
        made = (
            AMD.report(CHIP, report_data=slot)
            if self._platform == "snp"
            else INTEL.platform(fmspc=FMSPC).tdx_quote(report_data=slot)
        )
        return {ITEMS[self._platform]: EvidenceItem(media_type="x", data=made)}


@pytest.fixture
def server() -> Iterator[VendorServer]:
    with vendor_server() as running:
        Issue().publish(running)
        publish_amd(running)
        yield running


@pytest.fixture(params=ITEMS)
def platform(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stapling(platform: str, tmp_path: Path) -> StaplingAttester:
    return StaplingAttester(Bare(platform), EndorsementCache(tmp_path / "cache", ROOTS))


def fetcher(server: VendorServer) -> Fetcher:
    services = Services(amd_kds=server.url, intel_pcs=server.url)
    return vendor_fetcher(Httpx2Transport(), services=services, roots=ROOTS)


def verdict(platform: str, stapling: StaplingAttester) -> AttestationResult:
    """What a client says that requires endorsements, on software that it does not know."""
    hardware = SimulatedHardware.make(platform, now=NOW)
    worker = dataclasses.replace(hardware, issue=stapling.quote)
    return verify_report(
        worker.report(NONCE),
        nonce=NONCE,
        policy=policy.development(),
        reference_values=ReferenceValues.from_platforms(hardware.reference),
        roots=ROOTS,
        at=NOW,
    )


def refused(result: AttestationResult) -> set[str | None]:
    return {claim.code for claim in result.failures if claim.finding is Finding.CONTRAINDICATED}


def test_what_was_renewed_travels_with_the_evidence(
    server: VendorServer, platform: str, stapling: StaplingAttester
) -> None:
    assert "endorsements_missing" in refused(verdict(platform, stapling))
    asked = len(server.asked)
    assert asked == 0  # making evidence asks nobody
    assert stapling.renew(fetcher(server), at=NOW) == ()
    found = refused(verdict(platform, stapling))
    assert found == {"measurement_mismatch"}  # of other software, and nothing else
    assert stapling.renew(fetcher(server), at=NOW) == ()
    item = stapling.quote(bytes(32))[ITEMS[platform]]
    assert len(set(item.endorsements)) == len(item.endorsements)


def test_a_service_that_is_down_costs_no_evidence(
    server: VendorServer, platform: str, stapling: StaplingAttester
) -> None:
    assert stapling.renew(fetcher(server), at=NOW) == ()
    assert not server.asked  # nothing is known to be needed before any evidence is made
    stapling.quote(bytes(32))
    server.answers.clear()
    failures = stapling.renew(fetcher(server), at=NOW)
    assert failures
    assert stapling.quote(bytes(32))[ITEMS[platform]].data


def test_evidence_that_says_nothing_goes_as_it_came(tmp_path: Path) -> None:
    class Odd:
        def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
            return {"claims": EvidenceItem(media_type="x", data=statement_digest)}

    stapling = StaplingAttester(Odd(), EndorsementCache(tmp_path / "cache", ROOTS))
    assert stapling.quote(bytes(32)) == Odd().quote(bytes(32))
