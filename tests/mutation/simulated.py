"""Evidence of simulated vendors, and reports of workers on simulated platforms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.report import AttestationReport
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_azure import SimulatedAzure
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.evidence import Verify, run
from cloister.verifier.expected import Expected
from cloister.verifier.platforms.azure import verify_azure
from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm
from cloister.verifier.platforms.nvgpu import GpuEvidence, verify_nvgpu
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.snp import verify_snp
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm
from cloister.verifier.policy import development
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult
from mutation.subjects import Subject, from_evidence, make_part

NOW: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE: Final = bytes(range(32))
DATA: Final = bytes(range(64))


def simulated() -> Iterator[Subject]:
    """Every kind of evidence that can be simulated; keys differ from call to call."""
    yield from _vendors()
    yield from _workers()


def _vendors() -> Iterator[Subject]:
    amd, intel = SimulatedAmd(now=NOW), SimulatedIntel(now=NOW)
    snp = dataclasses.replace(amd.evidence(amd.key(), report_data=DATA), crls=(amd.crl(),))
    yield _subject("snp", verify_snp, snp, amd.roots, report_data=DATA)
    platform = intel.platform()
    for version, td15 in ((4, False), (5, True)):
        tdx = TdxEvidence(
            quote=platform.tdx_quote(version=version, td15=td15, report_data=DATA),
            collateral=intel.collateral().encode(),
        )
        yield _subject(f"tdx-v{version}", verify_tdx, tdx, intel.roots, report_data=DATA)
    sgx = SgxEvidence(
        quote=platform.sgx_quote(report_data=DATA), collateral=intel.collateral("SGX").encode()
    )
    yield _subject("sgx", verify_sgx, sgx, intel.roots, report_data=DATA)
    nitro = SimulatedNitro(now=NOW)
    document = NitroEvidence(document=nitro.document(user_data=DATA))
    yield _subject("nitro", verify_nitro, document, nitro.roots, user_data=DATA)
    yield _nitro_tpm(nitro)
    yield _gpu()
    azure = SimulatedAzure.make(now=NOW)
    vm = dataclasses.replace(azure.evidence(NONCE), snp_crls=(azure.amd.crl(),))
    yield _subject("azure", verify_azure, vm, azure.roots, extra_data=NONCE)
    yield _vtpm()


def _nitro_tpm(nitro: SimulatedNitro) -> Subject:
    vtpm = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384))
    vtpm.boot()
    evidence = NitroTpmEvidence(
        document=nitro.document(
            kind=DocumentKind.NITRO_TPM, pcrs=vtpm.registers[Alg.SHA384], user_data=DATA
        ),
        event_log=vtpm.event_log(),
    )
    return _subject("nitro-tpm", verify_nitro_tpm, evidence, nitro.roots, user_data=DATA)


def _gpu() -> Subject:
    nvidia = SimulatedNvidia.make(now=NOW)
    gpu = nvidia.device()
    evidence = GpuEvidence(
        devices=(gpu.evidence(NONCE),),
        driver_rims=(nvidia.driver_rim(gpu),),
        vbios_rims=(nvidia.vbios_rim(gpu),),
    )
    return _subject("gpu", verify_nvgpu, evidence, nvidia.roots, nonce=NONCE)


def _vtpm() -> Subject:
    vtpm, vendor = SimulatedVtpm(), SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
    vtpm.boot()
    evidence = TpmEvidence(
        quote=vtpm.quote(NONCE),
        ak_public=vtpm.public(),
        ak=AkEvidence(
            certificate=vendor.certify(vtpm.key.public_key()), intermediates=vendor.intermediates
        ),
        event_log=vtpm.event_log(),
    )
    return _subject("tpm", verify_tpm, evidence, vendor.roots, extra_data=NONCE)


def _subject(
    name: str, verify: Verify, evidence: object, roots: Roots, **expected: bytes
) -> Subject:
    def judge(changed: object) -> AttestationResult:
        return run(
            verify,
            changed,
            policy=development(),
            roots=roots,
            at=NOW,
            expected=Expected(values=expected),
        )

    return from_evidence(f"simulated/{name}", evidence, judge, roots)


def _workers() -> Iterator[Subject]:
    attester = SimulatedAttester.make(now=NOW)
    yield from _worker(
        "tpm", attester.attestation_report(NONCE), attester.reference_values, attester.roots
    )
    workers = {
        name: SimulatedHardware.make(name, now=NOW)
        for name in ("snp", "tdx", "sgx", "nitro", "nitro-tpm")
    }
    nvidia = SimulatedNvidia.make(now=NOW)
    workers["snp-gpus"] = workers["snp"].with_gpus(
        nvidia, nvidia.device("GH100"), nvidia.device("GB100")
    )
    for name, worker in workers.items():
        report = worker.attestation_report(NONCE)
        yield from _worker(name, report, worker.reference_values, worker.roots)


def _worker(
    name: str, report: AttestationReport, values: ReferenceValues, roots: Roots
) -> Iterator[Subject]:
    """A report as served, and each piece of evidence inside it."""
    judge = partial(_verify_report, reference_values=values, roots=roots)

    def judge_inside(changed: Any) -> AttestationResult:
        return judge(changed.encode())

    served = f"worker/{name}"
    yield Subject(
        name=served,
        parts=(make_part(served, "report.json", report.encode()),),
        judge=lambda _, data: judge(data),
        roots=roots,
    )
    yield from_evidence(f"{served}/inside", report, judge_inside, roots)


def _verify_report(
    data: bytes, *, reference_values: ReferenceValues, roots: Roots
) -> AttestationResult:
    return verify_report(
        data,
        nonce=NONCE,
        policy=development(),
        reference_values=reference_values,
        roots=roots,
        at=NOW,
    )
