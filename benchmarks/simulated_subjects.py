"""Evidence of simulated platforms, each with everything that may come along with it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.primitives import Signature
from benchmarks.subjects import Subject, keep, recorded
from cloister.endorsements.roots import Roots, Vendor
from cloister.testing.simulated_azure import SimulatedAzure
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.evidence import Verify
from cloister.verifier.platforms.azure import verify_azure
from cloister.verifier.platforms.gcp import GcpEvidence, verify_gcp
from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
from cloister.verifier.platforms.nvgpu import GpuEvidence, verify_nvgpu
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.snp import verify_snp
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm
from cloister.verifier.policy import as_captured, development

NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)
NONCE: Final = bytes(range(32))

_P256, _P384, _RSA2 = Signature.P256, Signature.P384, Signature.RSA_2048


def subjects() -> list[Subject]:
    """What is measured: recordings, then what was not recorded, or not with all that it needs."""
    found = recorded()
    seen = {subject.platform for subject in found}
    return [*found, *(one for one in simulated() if one.platform not in seen)]


def simulated() -> list[Subject]:
    """One subject for each platform, and for some what no recording has."""
    return [_snp(), *_dcap(), _nitro(), _tpm(), _azure(), _gcp(), _gpu()]


def _subject(
    platform: str,
    verify: Verify,
    evidence: Any,
    roots: Roots,
    signatures: tuple[Signature, ...],
    **more: bytes,
) -> Subject:
    return Subject(
        platform=platform,
        name=f"{platform} (simulated)",
        verify=verify,
        evidence=evidence,
        kept=keep(evidence, roots=roots, at=NOW),
        policy=as_captured(development()),
        roots=roots,
        at=NOW,
        signatures=signatures,
        **more,  # type: ignore[arg-type]  # a quote and its collateral
    )


def _snp() -> Subject:
    amd = SimulatedAmd(now=NOW)
    made = amd.evidence(crls=(amd.crl(),))
    # The report; its key's certificate and the list, by keys half as long as AMD's.
    return _subject("SNP with a CRL", verify_snp, made, amd.roots, (_P384, _RSA2, _RSA2))


def _dcap() -> list[Subject]:
    intel = SimulatedIntel(now=NOW)
    machine = intel.platform()
    guest, enclave = machine.tdx_quote(), machine.sgx_quote()
    of_guests, of_enclaves = intel.collateral().encode(), intel.collateral("SGX").encode()
    tdx = TdxEvidence(quote=guest, collateral=of_guests)
    sgx = SgxEvidence(quote=enclave, collateral=of_enclaves)
    kinds = (_P256,) * 3
    return [
        _subject("TDX", verify_tdx, tdx, intel.roots, kinds, quote=guest, collateral=of_guests),
        _subject("SGX", verify_sgx, sgx, intel.roots, kinds, quote=enclave, collateral=of_enclaves),
    ]


def _nitro() -> Subject:
    nitro = SimulatedNitro(now=NOW)
    made = NitroEvidence(document=nitro.document(nonce=NONCE))
    return _subject("Nitro", verify_nitro, made, nitro.roots, (_P384,) * 2)


def _booted() -> SimulatedVtpm:
    vtpm = SimulatedVtpm()
    vtpm.boot()
    return vtpm


def _certified(vtpm: SimulatedVtpm, vendor: SimulatedAkVendor) -> AkEvidence:
    return AkEvidence(
        certificate=vendor.certify(vtpm.key.public_key()), intermediates=vendor.intermediates
    )


def _tpm() -> Subject:
    vtpm, vendor = _booted(), SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
    made = TpmEvidence(
        quote=vtpm.quote(NONCE),
        ak_public=vtpm.public(),
        ak=_certified(vtpm, vendor),
        event_log=vtpm.event_log(),
    )
    name = "TPM with a certificate and a log"
    return _subject(name, verify_tpm, made, vendor.roots, (_RSA2, _P256))


def _azure() -> Subject:
    machine = SimulatedAzure.make(now=NOW)
    made = machine.evidence(NONCE)
    return _subject("Azure", verify_azure, made, machine.roots, (_P384, _RSA2, _RSA2, _P256))


def _gcp() -> Subject:
    vtpm, vendor = _booted(), SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    made = GcpEvidence(
        quotes=(vtpm.quote(NONCE),),
        ak_public=vtpm.public(),
        ak=_certified(vtpm, vendor),
        event_log=vtpm.event_log(),
    )
    return _subject("Google Cloud", verify_gcp, made, vendor.roots, (_RSA2, _P256))


def _gpu() -> Subject:
    nvidia = SimulatedNvidia.make(now=NOW)
    gpu = nvidia.device()
    made = GpuEvidence(
        devices=(gpu.evidence(NONCE),),
        driver_rims=(nvidia.driver_rim(gpu),),
        vbios_rims=(nvidia.vbios_rim(gpu),),
    )
    return _subject("GPU with both manifests", verify_nvgpu, made, nvidia.roots, (_P384,) * 2)
