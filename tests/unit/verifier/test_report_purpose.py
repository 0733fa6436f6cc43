"""Evidence made for one purpose is refused for every other, on TPMs and on hardware."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from cloister.channel.key_release import BrokerIdentity, ReleaseRequest
from cloister.channel.resource_uri import ResourceUri
from cloister.channel.statement import StatementDigest, statement_digest
from cloister.evidence.report import AttestationReport
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy as policies
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
NONCE = bytes(range(32))
RELEASE = ReleaseRequest(
    broker=BrokerIdentity(b"b" * 32),
    resource=ResourceUri(repository="acme", type="weights", tag="v1"),
    version=None,
    wrapping_key=b"w" * 1216,
)
OTHERS = [
    dataclasses.replace(RELEASE, broker=BrokerIdentity(b"c" * 32)),
    dataclasses.replace(RELEASE, wrapping_key=b"x" * 1216),
    dataclasses.replace(RELEASE, version=1),
    dataclasses.replace(RELEASE, resource=ResourceUri(repository="acme", type="keys", tag="v1")),
]

Worker = SimulatedAttester | SimulatedHardware


@pytest.fixture(params=["tpm", "snp", "tdx", "nitro"])
def worker(request: pytest.FixtureRequest) -> Worker:
    if request.param == "tpm":
        return SimulatedAttester.make(now=NOW)
    return SimulatedHardware.make(request.param, now=NOW)


def report(worker: Worker, purpose: StatementDigest) -> AttestationReport:
    return worker.attestation_report(NONCE, statement=purpose)


def verified(worker: Worker, made: StatementDigest, asked: StatementDigest) -> AttestationResult:
    return verify_report(
        report(worker, made).encode(),
        nonce=NONCE,
        policy=policies.development(),
        reference_values=worker.reference_values,
        roots=worker.roots,
        at=NOW,
        statement=asked,
    )


def refusals(result: AttestationResult) -> set[str]:
    assert result.verdict is Finding.CONTRAINDICATED
    return {claim.name for claim in result.failures}


def test_each_is_affirmed_for_what_it_was_made_for(worker: Worker) -> None:
    verified(worker, statement_digest, statement_digest).require_affirming()
    verified(worker, RELEASE.digest, RELEASE.digest).require_affirming()


def test_a_public_report_is_not_spent_at_a_broker(worker: Worker) -> None:
    assert "quote.fresh" in refusals(verified(worker, statement_digest, RELEASE.digest))


def test_a_release_is_not_shown_to_a_client(worker: Worker) -> None:
    assert "quote.fresh" in refusals(verified(worker, RELEASE.digest, statement_digest))


@pytest.mark.parametrize("other", OTHERS)
def test_a_release_is_good_for_its_own_request_only(worker: Worker, other: ReleaseRequest) -> None:
    assert "quote.fresh" in refusals(verified(worker, RELEASE.digest, other.digest))


def test_a_broker_needs_no_key_for_requests(worker: Worker) -> None:
    """What serves nobody is not asked for one; what serves is."""
    signing = worker if isinstance(worker, SimulatedAttester) else worker.worker
    signing.keyset = dataclasses.replace(signing.keyset, e2ee_public_keys=())

    def without(*, serves: bool) -> AttestationResult:
        return verify_report(
            worker.report(NONCE),
            nonce=NONCE,
            policy=policies.development(),
            reference_values=worker.reference_values,
            roots=worker.roots,
            at=NOW,
            serves=serves,
        )

    without(serves=False).require_affirming()
    assert refusals(without(serves=True)) == {"keyset.request_key"}
