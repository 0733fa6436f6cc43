"""Which endorsements a piece of evidence needs, read from the evidence itself.

Nothing is authenticated: whoever made the evidence chose what is asked for, within the forms of
`cloister.endorsements.artefact` and the hosts of `cloister.endorsements.fetch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from cloister.endorsements.amd import common_name, kind_of, parse_endorsement_key
from cloister.endorsements.artefact import (
    ArtefactRequest,
    ak_intermediate,
    amd_chain,
    amd_crl,
    amd_vcek,
    intel_pck_crl,
    intel_qe_identity,
    intel_root_crl,
    intel_tcb_info,
    nvidia_ocsp,
    nvidia_rim,
)
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.contents import parse_pem_chain
from cloister.endorsements.intel_pck import parse_pck_extensions
from cloister.endorsements.nvidia import device_model
from cloister.errors import ConfigurationError, UnsupportedError
from cloister.evidence.dcap import Quote, parse_quote
from cloister.evidence.hcl import HardwareType, HclReport, parse_hcl_report
from cloister.evidence.nvgpu import (
    DeviceReport,
    GpuDevice,
    OpaqueField,
    parse_device_report,
    parse_evidence_list,
)
from cloister.evidence.recognise import Kind, recognise
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, EvidenceItem, parse_attestation_report
from cloister.evidence.rim import parse_rim
from cloister.evidence.snp import Product, SigningKey, SnpReport, parse_report

_AZURE_DOMAINS = (".microsoft.com", ".windows.net")


def requests_for(
    data: bytes, *, product: Product | None = None, early: bool = False
) -> tuple[ArtefactRequest, ...]:
    """What is needed to verify the evidence in `data`, each once.

    `data` is an SEV-SNP report, an Intel quote, evidence of NVIDIA devices as their tools
    serialise it, one of their manifests, Azure's HCL report, an AK certificate, or a whole
    attestation report. `product` names the processor of SEV-SNP reports before version 3, which
    do not say. With `early`, Intel's early TCB data.

    Raises:
        MalformedError: it does not decode.
        UnsupportedError: it is something else (``endorsement.evidence``).
        ConfigurationError: the product is not known (``endorsement.product``).
    """
    return tuple(dict.fromkeys(_requests(data, product, early=early)))


def _requests(data: bytes, product: Product | None, *, early: bool) -> Iterator[ArtefactRequest]:
    found = recognise(data)
    match found.kind:
        case Kind.SNP_REPORT:
            yield from for_snp(parse_report(found.data), product)
        case Kind.DCAP_QUOTE:
            yield from for_quote(parse_quote(found.data), early=early)
        case Kind.HCL_REPORT:
            yield from for_hcl(parse_hcl_report(found.data), product)
        case Kind.GPU_EVIDENCE_LIST:
            for device in parse_evidence_list(found.data):
                yield from for_gpu(device)
        case Kind.RIM:
            yield from for_rim(found.data)
        case Kind.CERTIFICATES:
            yield from for_certificate(_certificate(found.data))
        case Kind.ATTESTATION_REPORT:
            for item in parse_attestation_report(found.data).evidence.values():
                yield from for_item(item, product, early=early)
        case _:
            raise UnsupportedError(
                f"it is not known which endorsements a file of kind {found.kind} needs",
                code="endorsement.evidence",
            )


def for_snp(report: SnpReport, product: Product | None = None) -> Iterator[ArtefactRequest]:
    """The chip's certificate, AMD's above it, and what AMD revoked."""
    product = report.product or product
    if product is None:
        raise ConfigurationError(
            "the report does not say which processor it comes from; name it with --product",
            code="endorsement.product",
        )
    vlek = report.signing_key is SigningKey.VLEK
    if report.signing_key is SigningKey.VCEK:
        yield amd_vcek(product, report.chip_id, report.reported_tcb)
    yield amd_chain(product, vlek=vlek)
    yield amd_crl(product, vlek=vlek)


def for_quote(quote: Quote, *, early: bool = False) -> Iterator[ArtefactRequest]:
    """Intel's collateral for the platform whose PCK certificate the quote brings."""
    if not quote.certification.certificates:
        raise UnsupportedError(
            "the quote does not bring its platform's certificate, so nothing names the platform",
            code="endorsement.evidence",
        )
    leaf = parse_certificate(quote.certification.certificates[0])
    issuer = common_name(leaf.issuer) or ""
    yield intel_tcb_info(quote.tee, parse_pck_extensions(leaf).fmspc, early=early)
    yield intel_qe_identity(quote.tee, early=early)
    yield intel_pck_crl("platform" if "Platform" in issuer else "processor")
    yield intel_root_crl()


def for_hcl(report: HclReport, product: Product | None = None) -> Iterator[ArtefactRequest]:
    """As `for_snp`, for a report inside Azure's; of a TD report the quote beside it tells."""
    if report.hardware_type is HardwareType.SNP:
        yield from for_snp(parse_report(report.hardware_report), product)


def for_gpu(device: GpuDevice) -> Iterator[ArtefactRequest]:
    """Manifests for the device's driver and VBIOS, and the status of its certificates."""
    chain = [parse_certificate(one) for one in device.chain]
    if chain:
        yield from manifests(parse_device_report(device.report), device_model(chain[0]))
    # The reporting key's own certificate comes from the device, and no responder knows it.
    for certificate, issuer in pairwise(chain[1:]):
        yield nvidia_ocsp(certificate, issuer)


def manifests(report: DeviceReport, model: str) -> Iterator[ArtefactRequest]:
    """Ids as NVIDIA's RIM service has them; `model` is ``GH100``, ``GB100``, ``LS10`` …."""
    if report.driver_version is not None:
        family = "NV_GPU_DRIVER" if model.startswith("GH") else "NV_GPU_CC_DRIVER"
        yield nvidia_rim(f"{family}_{model}_{report.driver_version}")
    kind = "NV_SWITCH_BIOS" if report.driver_version is None else "NV_GPU_VBIOS"
    fields = report.opaque
    parts = [
        fields.get(name.name.lower(), "").strip("\0 ").upper()
        for name in (OpaqueField.PROJECT, OpaqueField.PROJECT_SKU, OpaqueField.CHIP_SKU)
    ]
    if all(parts):
        version = report.vbios_version.replace(".", "").upper()
        yield nvidia_rim("_".join((kind, *parts, version)))


def for_rim(data: bytes) -> Iterator[ArtefactRequest]:
    """The status of the certificates that a manifest's signature names."""
    chain = [parse_certificate(one) for one in parse_rim(data).certificates]
    for certificate, issuer in pairwise(chain):
        yield nvidia_ocsp(certificate, issuer)


def for_certificate(certificate: x509.Certificate) -> Iterator[ArtefactRequest]:
    """What is above a VCEK, or above the certificate of a cloud's vTPM key."""
    if kind_of(certificate) is not None:
        key = parse_endorsement_key(certificate)
        vlek = key.kind is SigningKey.VLEK
        yield amd_chain(key.product, vlek=vlek)
        yield amd_crl(key.product, vlek=vlek)
        return
    for url in issuer_addresses(certificate)[:1]:
        host = url.split("/")[2] if url.count("/") >= 2 else ""
        yield ak_intermediate(url, azure=host.endswith(_AZURE_DOMAINS))


def issuer_addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Where the issuer's certificate is to be had, as `certificate` says (RFC 5280 4.2.2.1)."""
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    except x509.ExtensionNotFound:
        return ()
    return tuple(
        one.access_location.value
        for one in access.value
        if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(one.access_location, x509.UniformResourceIdentifier)
    )


def for_item(
    item: EvidenceItem, product: Product | None = None, *, early: bool = False
) -> Iterator[ArtefactRequest]:
    """What one item of a report needs; nothing for kinds that bring all there is."""
    chain = tuple(one.data for one in item.endorsements if one.media_type == MEDIA_TYPE_CERTIFICATE)
    match recognise(item.data).kind:
        case Kind.SNP_REPORT:
            yield from for_snp(parse_report(item.data), product)
        case Kind.DCAP_QUOTE:
            yield from for_quote(parse_quote(item.data), early=early)
        case Kind.HCL_REPORT:
            yield from for_hcl(parse_hcl_report(item.data), product)
        case Kind.GPU_REPORT:
            yield from for_gpu(GpuDevice(report=item.data, chain=chain))
        case Kind.TPM_QUOTE:
            for highest in chain[-1:]:
                yield from for_certificate(parse_certificate(highest))
        case _:
            return


def _certificate(data: bytes) -> x509.Certificate:
    return parse_pem_chain(data)[0] if b"-----BEGIN" in data else parse_certificate(data)
