"""GPUs of a worker: each way of passing off another's GPU, or none, as this worker's."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime

import pytest

from cloister.evidence.items import gpu_item
from cloister.evidence.nvgpu import gpu_nonce
from cloister.evidence.report import AttestationReport, EvidenceItem
from cloister.testing.simulated_hardware import SimulatedHardware, gpu_evidence
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding, worst

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
NVIDIA = SimulatedNvidia.make(now=NOW)
ONE, TWO = NVIDIA.device(), NVIDIA.device()
BARE = SimulatedHardware.make("snp", now=NOW)
WORKER = BARE.with_gpus(NVIDIA, ONE, TWO)


def verify(
    worker: SimulatedHardware,
    report: AttestationReport | None = None,
    *,
    under: AppraisalPolicy | None = None,
) -> AttestationResult:
    return verify_report(
        (worker.attestation_report(NONCE) if report is None else report).encode(),
        nonce=NONCE,
        policy=policy.development() if under is None else under,
        reference_values=worker.reference_values,
        roots=worker.roots,
        at=NOW,
    )


def refused(result: AttestationResult) -> set[tuple[str, str, str | None]]:
    assert result.verdict is Finding.CONTRAINDICATED
    assert result.attester is None
    return {
        (claim.device, claim.name, claim.code)
        for claim in result.failures
        if claim.finding is Finding.CONTRAINDICATED
    }


def with_items(report: AttestationReport, **changes: EvidenceItem | None) -> AttestationReport:
    evidence = dict(report.evidence)
    for number, item in changes.items():
        name = gpu_item(int(number.removeprefix("gpu")))
        if item is None:
            del evidence[name]
        else:
            evidence[name] = item
    return dataclasses.replace(report, evidence=evidence)


def test_two_gpus_of_this_worker() -> None:
    result = verify(WORKER)
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert {"cpu0", "gpu0", "gpu1", "gpus"} == {claim.device for claim in result.claims}
    assert any("not proven to be plugged into" in sentence for sentence in result.not_proven)
    assert result.require_affirming().development


def test_the_nonce_is_made_from_the_receipt_key() -> None:
    key = bytes(range(32))
    assert gpu_nonce(key) == hashlib.sha256(b"cloister.gpu.v1" + key).digest()


def test_a_gpu_of_another_machine_spliced_in() -> None:
    """Genuine, in confidential mode, and asked by somebody else's worker."""
    other = SimulatedHardware.make("snp", now=NOW).with_gpus(NVIDIA, ONE, TWO)
    assert verify(other).verdict is Finding.AFFIRMING
    item = other.attestation_report(NONCE).evidence[gpu_item(1)]
    found = refused(verify(WORKER, with_items(WORKER.attestation_report(NONCE), gpu1=item)))
    assert ("gpu1", "expected.nonce", "nonce_mismatch") in found
    assert ("gpus", "nvgpu.bound", "gpu_unbound") in found


def test_a_worker_that_names_somebody_elses_gpus() -> None:
    """The claims document can name any digest; the nonce still is another worker's."""
    other = SimulatedHardware.make("snp", now=NOW).with_gpus(NVIDIA, ONE, TWO)
    document = dataclasses.replace(
        WORKER.worker.claims_document,
        gpu_evidence_sha256=other.worker.claims_document.gpu_evidence_sha256,
    )
    keyset = dataclasses.replace(WORKER.worker.keyset, subject=document.subject)
    liar = dataclasses.replace(
        WORKER,
        worker=dataclasses.replace(WORKER.worker, claims_document=document, keyset=keyset),
        more_evidence=other.more_evidence,
    )
    found = refused(verify(liar))
    assert found == {
        ("gpu0", "expected.nonce", "nonce_mismatch"),
        ("gpu1", "expected.nonce", "nonce_mismatch"),
    }


def test_a_worker_that_lists_somebody_elses_receipt_key_too() -> None:
    """The other's GPUs answered for a key of which this worker only knows the public half."""
    other = SimulatedHardware.make("snp", now=NOW).with_gpus(NVIDIA, ONE, TWO)
    document = dataclasses.replace(
        WORKER.worker.claims_document,
        gpu_evidence_sha256=other.worker.claims_document.gpu_evidence_sha256,
    )
    own, theirs = WORKER.worker.keyset, other.worker.keyset.receipt_signing_keys[0]
    assert verify(WORKER).verdict is Finding.AFFIRMING
    for keys in (
        (*own.receipt_signing_keys, dataclasses.replace(theirs, key_id="another")),
        (dataclasses.replace(theirs, key_id="another"), *own.receipt_signing_keys),
    ):
        keyset = dataclasses.replace(own, subject=document.subject, receipt_signing_keys=keys)
        liar = dataclasses.replace(
            WORKER,
            worker=dataclasses.replace(WORKER.worker, claims_document=document, keyset=keyset),
            more_evidence=other.more_evidence,
        )
        assert refused(verify(liar)) == {
            ("gpu0", "expected.nonce", "nonce_mismatch"),
            ("gpu1", "expected.nonce", "nonce_mismatch"),
        }


def test_a_gpu_left_out() -> None:
    report = with_items(WORKER.attestation_report(NONCE), gpu1=None)
    assert refused(verify(WORKER, report)) == {("gpus", "nvgpu.bound", "gpu_unbound")}


def test_who_reads_the_processors_claims_alone_is_not_misled() -> None:
    def status(result: AttestationResult) -> object:
        processor = (claim for claim in result.claims if claim.device == "cpu0")
        return worst(processor)

    assert status(verify(WORKER)) is Finding.AFFIRMING
    assert status(verify(BARE)) is Finding.AFFIRMING
    report = with_items(WORKER.attestation_report(NONCE), gpu1=None)
    assert status(verify(WORKER, report)) is Finding.NONE
    under = dataclasses.replace(policy.development(), required_gpus=1)
    assert status(verify(BARE, under=under)) is Finding.NONE


def test_all_gpus_left_out() -> None:
    report = with_items(WORKER.attestation_report(NONCE), gpu0=None, gpu1=None)
    assert ("gpus", "nvgpu.bound", "gpu_unbound") in refused(verify(WORKER, report))


def test_a_gpu_that_the_worker_does_not_name() -> None:
    entry = BARE.worker.keyset.receipt_signing_keys[0]
    device = ONE.evidence(gpu_nonce(bytes.fromhex(entry.public_key)))
    more = {gpu_item(0): gpu_evidence(NVIDIA, ONE, device)}
    added = dataclasses.replace(BARE, more_evidence=more, roots=WORKER.roots)
    assert verify(BARE).verdict is Finding.AFFIRMING
    assert refused(verify(added)) == {("gpus", "nvgpu.bound", "gpu_unbound")}


def test_one_gpu_twice() -> None:
    twice = BARE.with_gpus(NVIDIA, ONE, ONE)
    found = refused(verify(twice))
    assert ("gpus", "nvgpu.distinct") in {(device, name) for device, name, _ in found}


@pytest.mark.parametrize(("required", "holds"), [(1, True), (2, True), (3, False)])
def test_how_many_gpus_the_policy_requires(required: int, *, holds: bool) -> None:
    under = dataclasses.replace(policy.development(), required_gpus=required)
    assert (verify(WORKER, under=under).verdict is Finding.AFFIRMING) is holds


def test_a_worker_without_gpus_where_one_is_required() -> None:
    assert verify(BARE).verdict is Finding.AFFIRMING
    under = dataclasses.replace(policy.development(), required_gpus=1)
    assert verify(BARE, under=under).verdict is not Finding.AFFIRMING


def test_a_gpu_without_its_manifests() -> None:
    report = WORKER.attestation_report(NONCE)
    item = report.evidence[gpu_item(0)]
    bare = dataclasses.replace(
        item,
        endorsements=tuple(
            entry for entry in item.endorsements if entry.media_type == "application/pkix-cert"
        ),
    )
    # The other GPU brings the same manifests, which serve both.
    assert verify(WORKER, with_items(report, gpu0=bare)).verdict is Finding.AFFIRMING
    found = refused(verify(WORKER, with_items(report, gpu0=bare, gpu1=bare)))
    assert "endorsements_missing" in {code for _, _, code in found}


def test_a_gpu_in_devtools_mode() -> None:
    open_one = NVIDIA.device()
    worker = BARE.with_gpus(NVIDIA, open_one)
    assert verify(worker).verdict is Finding.AFFIRMING
    manifests = worker.more_evidence[gpu_item(0)].endorsements
    open_one.devtools()
    opened = BARE.with_gpus(NVIDIA, open_one)
    item = dataclasses.replace(opened.more_evidence[gpu_item(0)], endorsements=manifests)
    found = refused(verify(dataclasses.replace(opened, more_evidence={gpu_item(0): item})))
    assert ("gpu0", "nvgpu.vbios_rim_measurements", "measurement_mismatch") in found


def test_gpus_beside_a_software_tpm() -> None:
    """Development stays development, and its claims rest on the operator's word."""
    attester = SimulatedAttester.make(now=NOW)
    report = attester.attestation_report(NONCE)
    entry = attester.keyset.receipt_signing_keys[0]
    device = ONE.evidence(gpu_nonce(bytes.fromhex(entry.public_key)))
    spliced = dataclasses.replace(
        report,
        evidence={**report.evidence, gpu_item(0): gpu_evidence(NVIDIA, ONE, device)},
    )

    def verdict(given: AttestationReport) -> AttestationResult:
        return verify_report(
            given.encode(),
            nonce=NONCE,
            policy=policy.development(),
            reference_values=attester.reference_values,
            roots=attester.roots.merged(NVIDIA.roots),
            at=NOW,
        )

    assert verdict(report).verdict is Finding.AFFIRMING
    assert refused(verdict(spliced)) == {("gpus", "nvgpu.bound", "gpu_unbound")}
