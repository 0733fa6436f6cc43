"""Simulated workers on hardware platforms: reports that verify, without any TEE.

Keys, claims document and keyset are those of `SimulatedAttester`; the evidence comes from the
simulated vendor of the platform. Only roots made here accept it, and only a policy that names
development affirms it::

    worker = SimulatedHardware.make("snp", now=now)
    result = verify_report(
        worker.report(nonce),
        nonce=nonce,
        policy=policy.development(),
        reference_values=worker.reference_values,
        roots=worker.roots,
        at=now,
    )
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from cloister.channel.statement import REPORT_DATA_SIZE, StatementDigest, statement_digest
from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence import items
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.hcl import parse_hcl_report
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.nvgpu import GpuDevice, evidence_digest, gpu_nonce
from cloister.evidence.report import (
    API_VERSION,
    ITEM_CLAIMS,
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    MEDIA_TYPE_CERTIFICATE,
    MEDIA_TYPE_CLAIMS,
    MEDIA_TYPE_EVENT_LOG,
    MEDIA_TYPE_QUOTE,
    MEDIA_TYPE_SIGNATURE,
    AttestationReport,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.snp import parse_report
from cloister.evidence.tpm import HASH_NAMES, Alg
from cloister.testing.simulated_azure import SimulatedAzure
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nvgpu import SimulatedGpu, SimulatedNvidia
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
from cloister.verifier.platform_references import PlatformReference
from cloister.verifier.reference_values import ReferenceValues

MEASUREMENT: Final = bytes([0xA1]) * 48
RTMRS: Final = tuple(bytes([0xB0 + number]) * 48 for number in range(4))
MRENCLAVE: Final = bytes([0xC1]) * 32
PCRS: Final = {index: bytes([0xD0 + index]) * 48 for index in range(3)}

Items = Mapping[str, EvidenceItem]
Issue = Callable[[bytes], Items]
"""From a 32-byte statement digest to evidence items."""


@dataclass(slots=True, kw_only=True)
class SimulatedHardware:
    """A worker on a simulated platform, with all of its secrets. Every field may be replaced."""

    platform: str
    """As in reference values: ``snp``, ``tdx``, ``sgx``, ``nitro``, ``nitro-tpm``, ``azure-snp``,
    ``gcp-snp``, ``gcp-tdx``, ``gcp-vtpm``, ``tpm``."""
    tee_type: str
    worker: SimulatedAttester
    issue: Issue
    roots: Roots
    reference: PlatformReference
    more_evidence: Items = dataclasses.field(default_factory=dict)
    """Items beside those of the platform: GPUs."""

    @classmethod
    def make(
        cls,
        platform: str,
        *,
        now: datetime,
        worker: SimulatedAttester | None = None,
        **fields: object,
    ) -> SimulatedHardware:
        """A worker on `platform`; `fields` go to the simulated vendor, under its own names."""
        return _MAKERS[platform](now, worker or SimulatedAttester.make(now=now), dict(fields))

    @property
    def reference_values(self) -> ReferenceValues:
        """Reference values that accept exactly this worker's image."""
        return ReferenceValues.from_platforms(self.reference)

    def report(self, nonce: bytes | None) -> bytes:
        """The report as served for `nonce`."""
        return self.attestation_report(nonce).encode()

    def attestation_report(
        self, nonce: bytes | None, *, statement: StatementDigest = statement_digest
    ) -> AttestationReport:
        """The report as a record, to change before it is encoded.

        `statement` says for which purpose: a public report, unless another one is named.
        """
        keyset, document = self.worker.keyset, self.worker.claims_document
        digest = statement(keyset.digest, nonce)
        claims = EvidenceItem(media_type=MEDIA_TYPE_CLAIMS, data=document.encode())
        return AttestationReport(
            api_version=API_VERSION,
            keyset_digest=keyset.digest,
            tee_type=self.tee_type,
            keyset=keyset.to_json(),
            report_data=digest,
            evidence={**self.issue(digest), **self.more_evidence, ITEM_CLAIMS: claims},
            service_capabilities={"supported_e2ee_versions": [], "serving": "direct"},
        )

    def with_gpus(self, nvidia: SimulatedNvidia, *gpus: SimulatedGpu) -> SimulatedHardware:
        """This worker with GPUs that answered its own nonce, named in its claims document."""
        entry = self.worker.keyset.receipt_signing_keys[0]
        nonce = gpu_nonce(bytes.fromhex(entry.public_key))
        devices = tuple(gpu.evidence(nonce) for gpu in gpus)
        document = dataclasses.replace(
            self.worker.claims_document, gpu_evidence_sha256=(evidence_digest(devices).hex(),)
        )
        keyset = dataclasses.replace(self.worker.keyset, subject=document.subject)
        return dataclasses.replace(
            self,
            worker=dataclasses.replace(self.worker, claims_document=document, keyset=keyset),
            roots=self.roots.merged(nvidia.roots),
            more_evidence={
                items.gpu_item(number): gpu_evidence(nvidia, gpu, device)
                for number, (gpu, device) in enumerate(zip(gpus, devices, strict=True))
            },
        )


def gpu_evidence(nvidia: SimulatedNvidia, gpu: SimulatedGpu, device: GpuDevice) -> EvidenceItem:
    """The item of one GPU: its report, its certificates and the manifests for its firmware."""
    rims = (nvidia.driver_rim(gpu), nvidia.vbios_rim(gpu))
    return EvidenceItem(
        media_type=items.MEDIA_TYPE_GPU_EVIDENCE,
        data=device.report,
        endorsements=(
            *_endorse(MEDIA_TYPE_CERTIFICATE, *device.chain),
            *_endorse(items.MEDIA_TYPE_RIM, *rims),
        ),
    )


def _reference(platform: str, **registers: bytes) -> PlatformReference:
    return PlatformReference(
        platform=platform,
        name="simulated image 1",
        registers={name: (value.hex(),) for name, value in registers.items()},
    )


def _slot(digest: bytes) -> bytes:
    return digest.ljust(REPORT_DATA_SIZE, b"\0")


def _endorse(media_type: str, *contents: bytes) -> tuple[Endorsement, ...]:
    return tuple(Endorsement(media_type=media_type, data=data) for data in contents)


def _snp(now: datetime, worker: SimulatedAttester, fields: dict[str, object]) -> SimulatedHardware:
    amd = SimulatedAmd(now=now)
    key, crl = amd.key(), amd.crl()
    chosen = {"measurement": MEASUREMENT, **fields}

    def issue(digest: bytes) -> Items:
        made = amd.evidence(key, report_data=_slot(digest), **chosen)  # type: ignore[arg-type]
        endorsements = (
            *_endorse(MEDIA_TYPE_CERTIFICATE, *made.certificates),
            *_endorse(items.MEDIA_TYPE_CRL, crl),
        )
        return {
            items.ITEM_SNP_REPORT: EvidenceItem(
                media_type=items.MEDIA_TYPE_SNP_REPORT, data=made.report, endorsements=endorsements
            )
        }

    return SimulatedHardware(
        platform="snp",
        tee_type=items.TEE_TYPE_SEV_SNP,
        worker=worker,
        issue=issue,
        roots=amd.roots,
        reference=_reference("snp", measurement=MEASUREMENT),
    )


def _tdx(now: datetime, worker: SimulatedAttester, fields: dict[str, object]) -> SimulatedHardware:
    intel = SimulatedIntel(now=now)
    platform, collateral = intel.platform(), intel.collateral()
    rtmrs = {f"rtmr{number}": value for number, value in enumerate(RTMRS)}
    chosen = {"mr_td": MEASUREMENT, **rtmrs, **fields}

    def issue(digest: bytes) -> Items:
        quote = platform.tdx_quote(report_data=_slot(digest), **chosen)  # type: ignore[arg-type]
        return {
            items.ITEM_TDX_QUOTE: EvidenceItem(
                media_type=items.MEDIA_TYPE_TDX_QUOTE,
                data=quote,
                endorsements=_endorse(items.MEDIA_TYPE_COLLATERAL, collateral.encode()),
            )
        }

    return SimulatedHardware(
        platform="tdx",
        tee_type=items.TEE_TYPE_TDX,
        worker=worker,
        issue=issue,
        roots=intel.roots,
        reference=_reference("tdx", mr_td=MEASUREMENT, **rtmrs),
    )


def _sgx(now: datetime, worker: SimulatedAttester, fields: dict[str, object]) -> SimulatedHardware:
    intel = SimulatedIntel(now=now)
    platform, collateral = intel.platform(), intel.collateral("SGX")
    chosen = {"mrenclave": MRENCLAVE, **fields}

    def issue(digest: bytes) -> Items:
        quote = platform.sgx_quote(report_data=_slot(digest), **chosen)  # type: ignore[arg-type]
        return {
            items.ITEM_SGX_QUOTE: EvidenceItem(
                media_type=items.MEDIA_TYPE_SGX_QUOTE,
                data=quote,
                endorsements=_endorse(items.MEDIA_TYPE_COLLATERAL, collateral.encode()),
            )
        }

    return SimulatedHardware(
        platform="sgx",
        tee_type=items.TEE_TYPE_SGX,
        worker=worker,
        issue=issue,
        roots=intel.roots,
        reference=_reference("sgx", mrenclave=MRENCLAVE),
    )


def _nitro(
    now: datetime, worker: SimulatedAttester, fields: dict[str, object]
) -> SimulatedHardware:
    nitro = SimulatedNitro(now=now)
    chosen = {"pcrs": PCRS, **fields}

    def issue(digest: bytes) -> Items:
        document = nitro.document(user_data=digest, **chosen)  # type: ignore[arg-type]
        return {
            items.ITEM_NITRO_DOCUMENT: EvidenceItem(
                media_type=items.MEDIA_TYPE_NITRO_DOCUMENT, data=document
            )
        }

    return SimulatedHardware(
        platform="nitro",
        tee_type=items.TEE_TYPE_NITRO,
        worker=worker,
        issue=issue,
        roots=nitro.roots,
        reference=_reference("nitro", **{f"pcr{index}": value for index, value in PCRS.items()}),
    )


def _nitro_tpm(
    now: datetime, worker: SimulatedAttester, fields: dict[str, object]
) -> SimulatedHardware:
    """A `SimulatedVtpm` that has booted something may be given as ``vtpm``, and the digest of a
    manifest that it was started for as ``manifest_sha256``."""
    nitro = SimulatedNitro(now=now)
    vtpm = fields.get("vtpm")
    if not isinstance(vtpm, SimulatedVtpm):
        vtpm = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384))
        vtpm.boot()
    booted = vtpm
    vouched = _measured(booted, Alg.SHA384)
    del vouched["pcr0"], vouched["pcr1"]
    manifest = fields.get("manifest_sha256")
    if isinstance(manifest, bytes):  # extended after the log was taken, as a guest does
        digests = {int(Alg.SHA256): manifest, int(Alg.SHA384): hashlib.sha384(manifest).digest()}
        booted.extend(Event(pcr=13, type=EventType.EV_IPL, digests=digests, data=b""))

    def issue(digest: bytes) -> Items:
        document = nitro.document(
            kind=DocumentKind.NITRO_TPM, pcrs=booted.registers[Alg.SHA384], user_data=digest
        )
        return {
            items.ITEM_NITRO_TPM_DOCUMENT: EvidenceItem(
                media_type=items.MEDIA_TYPE_NITRO_DOCUMENT, data=document
            ),
            **_log(booted.event_log()),
        }

    return SimulatedHardware(
        platform="nitro-tpm",
        tee_type=items.TEE_TYPE_NITRO_TPM,
        worker=worker,
        issue=issue,
        roots=nitro.roots,
        reference=_reference("nitro-tpm", **vouched),
    )


def _azure(
    now: datetime, worker: SimulatedAttester, fields: dict[str, object]
) -> SimulatedHardware:
    machine = SimulatedAzure.make(now=now)
    crl = machine.amd.crl()
    _close(machine.vtpm)
    vouched = _measured(machine.vtpm)
    _start_under(machine.vtpm, fields.pop("manifest_sha256", None))

    def issue(digest: bytes) -> Items:
        made = machine.evidence(digest)
        report = machine.hcl_report(**fields)  # type: ignore[arg-type]
        vouching = (
            *_endorse(MEDIA_TYPE_CERTIFICATE, *made.snp_certificates),
            *_endorse(items.MEDIA_TYPE_CRL, crl),
        )
        return {
            items.ITEM_AZURE_HCL_REPORT: EvidenceItem(
                media_type=items.MEDIA_TYPE_HCL_REPORT, data=report, endorsements=vouching
            ),
            items.ITEM_AZURE_QUOTE: EvidenceItem(
                media_type=MEDIA_TYPE_QUOTE, data=made.quote.quote, endorsements=_chain(made.ak)
            ),
            items.ITEM_AZURE_SIGNATURE: EvidenceItem(
                media_type=items.MEDIA_TYPE_RSA_SIGNATURE, data=made.quote.signature
            ),
            items.ITEM_AZURE_PCRS: _registers(made.quote),
            **_log(made.event_log),
        }

    report = parse_report(parse_hcl_report(machine.hcl_report()).hardware_report)
    return SimulatedHardware(
        platform="azure-snp",
        tee_type=items.TEE_TYPE_AZURE_SNP,
        worker=worker,
        issue=issue,
        roots=machine.roots,
        reference=_reference("azure-snp", measurement=report.measurement, **vouched),
    )


def _gcp(
    now: datetime, worker: SimulatedAttester, fields: dict[str, object], *, beside: str | None
) -> SimulatedHardware:
    """A machine at Google; `beside` says what its processor is. Of `fields` ``manifest_sha256`` is
    the TPM's (see `_tpm`), the others are the processor's."""
    google, vtpm = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=now), SimulatedVtpm()
    vtpm.boot()
    _close(vtpm)
    vouched = _measured(vtpm)
    _start_under(vtpm, fields.pop("manifest_sha256", None))
    ak = AkEvidence(
        certificate=google.certify(vtpm.key.public_key()), intermediates=google.intermediates
    )
    below = None if beside is None else _MAKERS[beside](now, worker, fields)

    def issue(digest: bytes) -> Items:
        quote = vtpm.quote(digest)
        return {
            **({} if below is None else below.issue(digest)),
            ITEM_QUOTE: EvidenceItem(
                media_type=MEDIA_TYPE_QUOTE, data=quote.quote, endorsements=_chain(ak)
            ),
            ITEM_SIGNATURE: EvidenceItem(media_type=MEDIA_TYPE_SIGNATURE, data=quote.signature),
            items.ITEM_TPM_PCRS: _registers(quote),
            **_log(vtpm.event_log()),
        }

    platform = "gcp-vtpm" if beside is None else f"gcp-{beside}"
    hardware = {} if below is None else below.reference.registers
    return SimulatedHardware(
        platform=platform,
        tee_type=platform,
        worker=worker,
        issue=issue,
        roots=google.roots if below is None else below.roots.merged(google.roots),
        reference=PlatformReference(
            platform=platform,
            name="simulated image 1",
            registers={**hardware, **{name: (v.hex(),) for name, v in vouched.items()}},
        ),
    )


def _tpm(now: datetime, worker: SimulatedAttester, fields: dict[str, object]) -> SimulatedHardware:
    """A measured boot; a `SimulatedVtpm` that has booted something may be given as ``vtpm``, and
    the digest of a manifest that it was started for as ``manifest_sha256``."""
    vendor = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=now)
    vtpm = fields.get("vtpm")
    if not isinstance(vtpm, SimulatedVtpm):
        vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
        vtpm.boot()
    booted = vtpm
    vouched = _measured(booted)
    _start_under(booted, fields.get("manifest_sha256"))
    chain = (vendor.certify(booted.key.public_key()), *vendor.intermediates)

    def issue(digest: bytes) -> Items:
        quote = booted.quote(digest, pcrs=range(16))
        return {
            ITEM_QUOTE: EvidenceItem(
                media_type=MEDIA_TYPE_QUOTE,
                data=quote.quote,
                endorsements=_endorse(MEDIA_TYPE_CERTIFICATE, *chain),
            ),
            ITEM_SIGNATURE: EvidenceItem(media_type=MEDIA_TYPE_SIGNATURE, data=quote.signature),
            items.ITEM_TPM_PCRS: _registers(quote),
            **_log(booted.event_log()),
        }

    return SimulatedHardware(
        platform="tpm",
        tee_type=items.TEE_TYPE_TPM_BOOT,
        worker=worker,
        issue=issue,
        roots=vendor.roots,
        reference=_reference("tpm", **vouched),
    )


def _close(vtpm: SimulatedVtpm) -> None:
    """What an image measures after its start, but for a manifest, whose register stays zero."""
    for pcr in (9, 10, 11, 12, 14, 15):
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))


def _start_under(vtpm: SimulatedVtpm, manifest: object) -> None:
    """Extend a manifest's digest, which no log tells of, as a guest does; None: nothing."""
    if isinstance(manifest, bytes):
        digests = {
            int(bank): manifest[: _SIZES[bank]].ljust(_SIZES[bank], b"\0") for bank in vtpm.banks
        }
        vtpm.extend(Event(pcr=13, type=EventType.EV_IPL, digests=digests, data=b""))


def _chain(ak: AkEvidence | None) -> tuple[Endorsement, ...]:
    certificates = () if ak is None else (ak.certificate, *ak.intermediates)
    return _endorse(MEDIA_TYPE_CERTIFICATE, *certificates)


def _registers(quote: QuoteEvidence) -> EvidenceItem:
    if isinstance(quote.pcrs, bytes):
        raise TypeError("a simulated TPM gives its registers decoded")
    banks = {
        HASH_NAMES[bank]: {str(pcr): value.hex() for pcr, value in values.items()}
        for bank, values in quote.pcrs.items()
    }
    return EvidenceItem(media_type=items.MEDIA_TYPE_PCRS, data=json.dumps(banks).encode())


def _log(log: bytes | None) -> Items:
    if log is None:
        return {}
    return {ITEM_EVENT_LOG: EvidenceItem(media_type=MEDIA_TYPE_EVENT_LOG, data=log)}


def _measured(vtpm: SimulatedVtpm, bank: int = Alg.SHA256) -> dict[str, bytes]:
    """Every register that reference values of a virtual TPM have to list."""
    numbers = (*range(10), 11, 12, 13, 14, 15)
    return {f"pcr{number}": vtpm.registers[bank][number] for number in numbers}


_SIZES: Final[Mapping[int, int]] = {Alg.SHA1: 20, Alg.SHA256: 32, Alg.SHA384: 48}

_MAKERS: Final[
    Mapping[str, Callable[[datetime, SimulatedAttester, dict[str, object]], SimulatedHardware]]
] = {
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "nitro": _nitro,
    "nitro-tpm": _nitro_tpm,
    "azure-snp": _azure,
    "gcp-snp": partial(_gcp, beside="snp"),
    "gcp-tdx": partial(_gcp, beside="tdx"),
    "gcp-vtpm": partial(_gcp, beside=None),
    "tpm": _tpm,
}
