"""Reports that are genuine in one part only, and what a worker says before it is known.

The simulated vendors' roots are pinned here as if they were genuine ones, where a test says so.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from cloister.channel.claims import ModelClaim
from cloister.endorsements.roots import Roots
from cloister.evidence.report import AttestationReport
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from cloister.verifier import policy
from cloister.verifier.ear import to_ear
from cloister.verifier.evidence import run
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.report import verify_report
from cloister.verifier.report_items import HARDWARE
from cloister.verifier.result import AttestationResult, Claim, Finding

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
NVIDIA = SimulatedNvidia.make(now=NOW)
SNP = SimulatedHardware.make("snp", now=NOW)
GCP = SimulatedHardware.make("gcp-snp", now=NOW)
WITH_GPU = SNP.with_gpus(NVIDIA, NVIDIA.device())


def genuine(roots: Roots) -> Roots:
    anchors = tuple(dataclasses.replace(one, development=False) for one in roots.anchors)
    return dataclasses.replace(roots, anchors=anchors)


def only(roots: Roots, *words: str) -> Roots:
    """`roots` with those anchors genuine whose vendors' names begin with one of `words`."""
    return dataclasses.replace(
        roots,
        anchors=tuple(
            dataclasses.replace(one, development=not one.vendor.name.startswith(words))
            for one in roots.anchors
        ),
    )


def verify(
    worker: SimulatedHardware,
    report: AttestationReport | None = None,
    *,
    nonce: bytes = NONCE,
    under: AppraisalPolicy | None = None,
    roots: Roots | None = None,
) -> AttestationResult:
    return verify_report(
        (worker.attestation_report(NONCE) if report is None else report).encode(),
        nonce=nonce,
        policy=policy.strict() if under is None else under,
        reference_values=worker.reference_values,
        roots=genuine(worker.roots) if roots is None else roots,
        at=NOW,
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    assert result.attester is None
    return {
        claim.name: claim.code
        for claim in result.failures
        if claim.finding is Finding.CONTRAINDICATED
    }


def claim(result: AttestationResult, name: str) -> Claim:
    return next(one for one in result.claims if (one.device, one.name) == ("cpu0", name))


@pytest.mark.parametrize(
    ("worker", "parts"),
    [(WITH_GPU, ("AMD",)), (WITH_GPU, ("NVIDIA",)), (GCP, ("AMD",)), (GCP, ("GOOGLE",))],
    ids=["gpu simulated", "processor simulated", "virtual TPM simulated", "processor of Google's"],
)
def test_one_simulated_part_makes_it_development(
    worker: SimulatedHardware, parts: tuple[str, ...]
) -> None:
    result = verify(worker)
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert not result.require_affirming().development
    assert result.memory_confidentiality == "sev_snp"
    mixed = only(worker.roots, *parts)
    assert {one.development for one in mixed.anchors} == {True, False}
    refused = verify(worker, roots=mixed)
    assert codes(refused) == {
        "memory.confidentiality": "memory_unencrypted",
        "platform.development": "development_refused",
    }
    assert refused.development
    accepted = verify(worker, roots=mixed, under=policy.development())
    assert accepted.require_affirming().development
    assert accepted.memory_confidentiality == "none"


@pytest.mark.parametrize("name", ["software.model", "configuration.debug"])
def test_accepted_software_speaks_only_for_a_worker_that_it_answers_for(name: str) -> None:
    """The image is known, but who wrote the claims document is not, without the binding."""
    assert claim(verify(SNP), name).finding is Finding.AFFIRMING
    result = verify(SNP, nonce=bytes(32))
    assert claim(result, "software.registers").finding is Finding.AFFIRMING
    assert claim(result, name).code == "unauthenticated"


def test_a_digest_of_the_keyset_that_is_another_ones() -> None:
    """Clients route by it, and so it has to be right, though nobody believes it."""
    report = SNP.attestation_report(NONCE)
    assert verify(SNP, report).verdict is Finding.AFFIRMING
    found = codes(verify(SNP, dataclasses.replace(report, keyset_digest=f"sha256:{'0' * 64}")))
    assert set(found.values()) == {"keyset_unbound"}


def test_a_report_of_another_version_is_not_gone_into() -> None:
    report = SNP.attestation_report(NONCE)
    assert claim(verify(SNP, report), "report.items").finding is Finding.AFFIRMING
    result = verify(SNP, dataclasses.replace(report, api_version="aci/2"))
    assert codes(result) == {"report.format": "report_version"}
    assert "report.items" not in {one.name for one in result.claims}


def test_one_model_of_two_without_a_digest() -> None:
    known = ModelClaim(name="one", sha256="a" * 64)

    def serving(*models: ModelClaim) -> SimulatedHardware:
        document = dataclasses.replace(SNP.worker.claims_document, models=models)
        keyset = dataclasses.replace(SNP.worker.keyset, subject=document.subject)
        worker = dataclasses.replace(SNP.worker, claims_document=document, keyset=keyset)
        return dataclasses.replace(SNP, worker=worker)

    two = verify(serving(known, ModelClaim(name="two", sha256="b" * 64)))
    assert two.verdict is Finding.AFFIRMING
    found = codes(verify(serving(known, ModelClaim(name="two", sha256=None))))
    assert found == {"software.model": "model_unmeasured"}


@pytest.mark.parametrize(("rest", "holds"), [(bytes(16), True), (bytes(15) + b"\1", False)])
def test_a_manifest_fills_its_register(rest: bytes, *, holds: bool) -> None:
    digest = bytes([0x77]) * 32
    made = SimulatedHardware.make("tdx", now=NOW, mr_config_id=digest + rest)
    document = dataclasses.replace(made.worker.claims_document, manifest_sha256=digest.hex())
    keyset = dataclasses.replace(made.worker.keyset, subject=document.subject)
    worker = dataclasses.replace(made.worker, claims_document=document, keyset=keyset)
    result = verify(dataclasses.replace(made, worker=worker))
    assert (claim(result, "manifest.bound").finding is Finding.AFFIRMING) is holds


def test_encrypted_memory_is_claimed_only_of_what_is_affirmed() -> None:
    def vector(result: AttestationResult) -> object:
        submodules = to_ear(result, build="cloister")["submods"]
        assert isinstance(submodules, dict)
        processor = submodules["cpu0"]
        assert isinstance(processor, dict)
        return processor["ear.trustworthiness-vector"]

    good, bad = vector(verify(SNP)), vector(verify(SNP, nonce=bytes(32)))
    assert isinstance(good, dict)
    assert isinstance(bad, dict)
    assert good["runtime-opaque"] == 2
    assert "runtime-opaque" not in bad


def halves() -> AttestationReport:
    """The processor's half of one challenge, the virtual TPM's of another."""
    report, other = GCP.attestation_report(NONCE), GCP.attestation_report(bytes(32))
    later = {name: item for name, item in other.evidence.items() if name.startswith("tpm.")}
    return dataclasses.replace(report, evidence={**report.evidence, **later})


def test_halves_of_two_challenges_are_no_machine() -> None:
    """Of what protects memory and what runs, nothing is said: each may be another's."""
    assert verify(GCP).memory_confidentiality == "sev_snp"
    result = verify(GCP, halves())
    assert codes(result) == {"gcp.same_challenge": "report_data_mismatch"}
    assert result.memory_confidentiality == "none"
    for name in ("software.registers", "quote.fresh", "keyset.bound"):
        assert claim(result, name).code == "not_checked"


def test_two_that_were_asked_nothing_answer_no_challenge() -> None:
    """Zeros are what report data hold, and nothing what extra data hold, that nobody gave."""

    def joined(hardware: bytes, vtpm: bytes) -> Claim:
        from_hardware, from_vtpm = GCP.issue(hardware), GCP.issue(vtpm)
        items = {
            **from_hardware,
            **{name: item for name, item in from_vtpm.items() if name.startswith("tpm.")},
        }
        check, evidence = HARDWARE[GCP.tee_type].assemble(items)
        result = run(check, evidence, policy=policy.strict(), roots=genuine(GCP.roots), at=NOW)
        return claim(result, "gcp.same_challenge")

    assert joined(bytes(32), bytes(32)).finding is Finding.AFFIRMING
    assert joined(bytes(32), b"").code == "report_data_mismatch"
