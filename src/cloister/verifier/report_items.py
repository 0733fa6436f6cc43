"""From the evidence items of a report to the evidence that one platform's verifier takes.

``tee_type`` only says which items to look for. What the platform is, is what its evidence shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.errors import MalformedError
from cloister.evidence import items
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    MEDIA_TYPE_CERTIFICATE,
    EvidenceItem,
)
from cloister.verifier.evidence import Verify

if TYPE_CHECKING:
    from cloister.verifier.authenticate.ak import AkEvidence
    from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
    from cloister.verifier.platforms.gcp import GcpEvidence
    from cloister.verifier.platforms.snp import SnpEvidence
    from cloister.verifier.platforms.tdx import TdxEvidence

Items = Mapping[str, EvidenceItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwarePlatform:
    """How reports of one ``tee_type`` are read."""

    reference: str
    """The platform's name in reference values."""
    assemble: Callable[[Items], tuple[Verify, object]]
    """The verifier for these items, and the evidence to give it. Raises MalformedError."""


def _data(evidence: Items, name: str) -> bytes:
    item = evidence.get(name)
    if item is None:
        raise MalformedError(f"there is no {name}")
    return item.data


def _optional(evidence: Items, name: str) -> bytes | None:
    item = evidence.get(name)
    return None if item is None else item.data


def _endorsements(evidence: Items, name: str, media_type: str) -> tuple[bytes, ...]:
    item = evidence.get(name)
    listed = () if item is None else item.endorsements
    return tuple(entry.data for entry in listed if entry.media_type == media_type)


def _certificates(evidence: Items, name: str) -> tuple[bytes, ...]:
    return _endorsements(evidence, name, MEDIA_TYPE_CERTIFICATE)


def _collateral(evidence: Items, name: str) -> bytes | None:
    """The collateral's own bytes: whether they decode is a claim of the platform's."""
    found = _endorsements(evidence, name, items.MEDIA_TYPE_COLLATERAL)
    return found[0] if found else None


def _snp_evidence(evidence: Items, name: str, report: bytes) -> SnpEvidence:
    """`report` with what vouches for it among the endorsements of the item `name`."""
    from cloister.verifier.platforms.snp import SnpEvidence, snp_evidence_from_table

    certificates = _certificates(evidence, name)
    crls = _endorsements(evidence, name, items.MEDIA_TYPE_CRL)
    for table in _endorsements(evidence, name, items.MEDIA_TYPE_SNP_CERTIFICATE_TABLE):
        listed = snp_evidence_from_table(report, table)
        certificates, crls = certificates + listed.certificates, crls + listed.crls
    return SnpEvidence(report=report, certificates=certificates, crls=crls)


def _snp_item(evidence: Items) -> SnpEvidence:
    name = items.ITEM_SNP_REPORT
    return _snp_evidence(evidence, name, _data(evidence, name))


def _tdx_item(evidence: Items) -> TdxEvidence:
    from cloister.verifier.platforms.tdx import TdxEvidence

    name = items.ITEM_TDX_QUOTE
    return TdxEvidence(
        quote=_data(evidence, name),
        collateral=_collateral(evidence, name),
        certificates=_certificates(evidence, name),
        ccel_event_log=_optional(evidence, items.ITEM_TDX_EVENT_LOG),
    )


def _quote_evidence(
    evidence: Items, quote: str, signature: str, pcrs: str, *, bare: bool
) -> QuoteEvidence:
    from cloister.evidence.pcrs import parse_pcrs_json
    from cloister.verifier.authenticate.tpm_quote import QuoteEvidence

    return QuoteEvidence(
        quote=_data(evidence, quote),
        signature=_data(evidence, signature),
        pcrs=parse_pcrs_json(_data(evidence, pcrs)),
        bare_signature=bare,
    )


def _ak(evidence: Items, name: str) -> AkEvidence | None:
    from cloister.verifier.authenticate.ak import AkEvidence

    chain = _certificates(evidence, name)
    return AkEvidence(certificate=chain[0], intermediates=chain[1:]) if chain else None


def _gcp_item(evidence: Items) -> GcpEvidence:
    from cloister.verifier.platforms.gcp import GcpEvidence

    names = (ITEM_QUOTE, ITEM_SIGNATURE, items.ITEM_TPM_PCRS)
    ak = _ak(evidence, ITEM_QUOTE)
    if ak is None:  # whatever the policy: a key that nobody vouches for is anybody's
        raise MalformedError("nobody certifies the key that signed the quote")
    return GcpEvidence(
        quotes=(_quote_evidence(evidence, *names, bare=False),),
        ak=ak,
        event_log=_optional(evidence, ITEM_EVENT_LOG),
    )


def _snp(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.snp import verify_snp

    return verify_snp, _snp_item(evidence)


def _tdx(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.tdx import verify_tdx

    return verify_tdx, _tdx_item(evidence)


def _azure(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.azure import AzureEvidence, verify_azure

    report = _data(evidence, items.ITEM_AZURE_HCL_REPORT)
    vouching = _snp_evidence(evidence, items.ITEM_AZURE_HCL_REPORT, report)
    names = (items.ITEM_AZURE_QUOTE, items.ITEM_AZURE_SIGNATURE, items.ITEM_AZURE_PCRS)
    return verify_azure, AzureEvidence(
        hcl_report=report,
        quote=_quote_evidence(evidence, *names, bare=True),
        snp_certificates=vouching.certificates,
        snp_crls=vouching.crls,
        td_quote=_optional(evidence, items.ITEM_AZURE_TD_QUOTE),
        td_collateral=_collateral(evidence, items.ITEM_AZURE_TD_QUOTE),
        ak=_ak(evidence, items.ITEM_AZURE_QUOTE),
        event_log=_optional(evidence, ITEM_EVENT_LOG),
    )


def _tpm_boot(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.measured_boot import verify_measured_boot
    from cloister.verifier.platforms.tpm import TpmEvidence

    names = (ITEM_QUOTE, ITEM_SIGNATURE, items.ITEM_TPM_PCRS)
    ak = _ak(evidence, ITEM_QUOTE)
    if ak is None:  # whatever the policy: a key that nobody vouches for is anybody's
        raise MalformedError("nobody certifies the key that signed the quote")
    return verify_measured_boot, TpmEvidence(
        quote=_quote_evidence(evidence, *names, bare=False),
        ak=ak,
        event_log=_data(evidence, ITEM_EVENT_LOG),
    )


def _gcp(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.gcp import verify_gcp

    return verify_gcp, _gcp_item(evidence)


def _gcp_snp(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms import gcp_confidential as confidential

    return confidential.verify_gcp_confidential, confidential.GcpConfidentialEvidence(
        hardware=_snp_item(evidence), vtpm=_gcp_item(evidence)
    )


def _gcp_tdx(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms import gcp_confidential as confidential

    return confidential.verify_gcp_confidential, confidential.GcpConfidentialEvidence(
        hardware=_tdx_item(evidence), vtpm=_gcp_item(evidence)
    )


def _sgx(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx

    name = items.ITEM_SGX_QUOTE
    return verify_sgx, SgxEvidence(
        quote=_data(evidence, name),
        collateral=_collateral(evidence, name),
        certificates=_certificates(evidence, name),
    )


def _nitro(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro

    return verify_nitro, NitroEvidence(document=_data(evidence, items.ITEM_NITRO_DOCUMENT))


def _nitro_tpm(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm

    return verify_nitro_tpm, NitroTpmEvidence(
        document=_data(evidence, items.ITEM_NITRO_TPM_DOCUMENT),
        event_log=_data(evidence, ITEM_EVENT_LOG),
    )


HARDWARE: Final[Mapping[str, HardwarePlatform]] = {
    items.TEE_TYPE_SEV_SNP: HardwarePlatform(reference="snp", assemble=_snp),
    items.TEE_TYPE_TDX: HardwarePlatform(reference="tdx", assemble=_tdx),
    items.TEE_TYPE_SGX: HardwarePlatform(reference="sgx", assemble=_sgx),
    items.TEE_TYPE_AZURE_SNP: HardwarePlatform(reference="azure-snp", assemble=_azure),
    items.TEE_TYPE_AZURE_TDX: HardwarePlatform(reference="azure-tdx", assemble=_azure),
    items.TEE_TYPE_GCP_SNP: HardwarePlatform(reference="gcp-snp", assemble=_gcp_snp),
    items.TEE_TYPE_GCP_TDX: HardwarePlatform(reference="gcp-tdx", assemble=_gcp_tdx),
    items.TEE_TYPE_GCP_VTPM: HardwarePlatform(reference="gcp-vtpm", assemble=_gcp),
    items.TEE_TYPE_TPM_BOOT: HardwarePlatform(reference="tpm", assemble=_tpm_boot),
    items.TEE_TYPE_NITRO: HardwarePlatform(reference="nitro", assemble=_nitro),
    items.TEE_TYPE_NITRO_TPM: HardwarePlatform(reference="nitro-tpm", assemble=_nitro_tpm),
}
"""By ``tee_type``."""
