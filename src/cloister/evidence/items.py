"""Names and media types of the evidence items that attesters put into a report.

One item is one thing that the platform handed out, byte for byte; `cloister.evidence.report`
says how items travel. What vouches for an item (certificates, first the one whose key signed
it) travels as the item's endorsements.

Where the 32-byte statement digest stands in each:

===================  ==========================================================================
item                 statement digest
===================  ==========================================================================
``snp.report``       first 32 bytes of REPORT_DATA, the other 32 zero
``tdx.quote``        first 32 bytes of REPORTDATA, the other 32 zero
``sgx.quote``        first 32 bytes of the report body's report data, the other 32 zero
``nitro.document``   the whole of ``user_data``; so in ``nitrotpm.document``
``tpm.quote``        the whole of ``extraData``
``azure.quote``      the whole of ``extraData``; the hardware report below names the quoting key
``gpu<n>.evidence``  nowhere by itself: the SPDM nonce is what the caller chose for the GPU
===================  ==========================================================================

``snp.report`` made by an SVSM is the exception, and is made only on request: its REPORT_DATA is
a hash over the digest and ``snp.svsm_manifest`` (AMD 58019, "SVSM attestation protocol").
"""

from __future__ import annotations

from typing import Final

TEE_TYPE_SEV_SNP: Final = "sev-snp"
TEE_TYPE_TDX: Final = "tdx"
TEE_TYPE_SGX: Final = "sgx"
TEE_TYPE_NITRO: Final = "nitro"
TEE_TYPE_AZURE_SNP: Final = "azure-snp"
TEE_TYPE_AZURE_TDX: Final = "azure-tdx"
TEE_TYPE_GCP_VTPM: Final = "gcp-vtpm"
TEE_TYPE_GCP_SNP: Final = "gcp-snp"
"""``snp.report`` together with the items of ``gcp-vtpm``."""
TEE_TYPE_GCP_TDX: Final = "gcp-tdx"
"""``tdx.quote`` together with the items of ``gcp-vtpm``."""

TEE_TYPE_NITRO_TPM: Final = "nitro-tpm"
"""An AWS instance whose NitroTPM measured its boot: ``nitrotpm.document``, and the firmware's log
as ``tpm.event_log``."""

TEE_TYPE_TPM_BOOT: Final = "tpm-boot"
"""A machine whose firmware measured its boot into a TPM: ``tpm.quote`` over PCR 0 to 15, with
``tpm.signature``, ``tpm.pcrs`` and the firmware's log as ``tpm.event_log``."""

ITEM_SNP_REPORT: Final = "snp.report"
"""1184 bytes: ATTESTATION_REPORT (AMD 56860)."""
ITEM_SNP_SVSM_MANIFEST: Final = "snp.svsm_manifest"
ITEM_TDX_QUOTE: Final = "tdx.quote"
"""An Intel quote, version 4 or 5, possibly zero-padded; the PCK chain is inside."""
ITEM_TDX_EVENT_LOG: Final = "tdx.event_log"
"""The ACPI CCEL area, possibly padded with 0xFF."""
ITEM_SGX_QUOTE: Final = "sgx.quote"
ITEM_NITRO_DOCUMENT: Final = "nitro.document"
"""COSE_Sign1, certificates inside."""
ITEM_NITRO_TPM_DOCUMENT: Final = "nitrotpm.document"
"""The same format and media type, of an instance's NitroTPM."""
ITEM_TPM_PCRS: Final = "tpm.pcrs"
ITEM_AZURE_HCL_REPORT: Final = "azure.hcl_report"
"""What NV index 0x01400001 holds: header, SNP or TD report, runtime JSON with the quoting key."""
ITEM_AZURE_TD_QUOTE: Final = "azure.td_quote"
"""The TD report of the HCL report, signed: an Intel quote."""
ITEM_AZURE_QUOTE: Final = "azure.quote"
ITEM_AZURE_SIGNATURE: Final = "azure.signature"
"""Bare RSASSA-PKCS1-v1_5 signature with SHA-256, 256 bytes, as Azure's own tools record it."""
ITEM_AZURE_PCRS: Final = "azure.pcrs"

MEDIA_TYPE_SNP_REPORT: Final = "application/vnd.cloister.snp-report"
MEDIA_TYPE_SNP_CERTIFICATE_TABLE: Final = "application/vnd.cloister.snp-certificate-table"
"""The table of GUIDs, offsets and lengths that the host provides (AMD 56421, GHCB, table 5),
where its certificates could not be taken out."""
MEDIA_TYPE_SVSM_MANIFEST: Final = "application/vnd.cloister.svsm-manifest"
MEDIA_TYPE_TDX_QUOTE: Final = "application/vnd.cloister.tdx-quote"
MEDIA_TYPE_SGX_QUOTE: Final = "application/vnd.cloister.sgx-quote"
MEDIA_TYPE_NITRO_DOCUMENT: Final = "application/cose; cose-type=cose-sign1"
MEDIA_TYPE_HCL_REPORT: Final = "application/vnd.cloister.azure-hcl-report"
MEDIA_TYPE_RSA_SIGNATURE: Final = "application/vnd.cloister.rsassa-sha256"
MEDIA_TYPE_PCRS: Final = "application/vnd.cloister.pcrs+json"
"""``{"sha256": {"0": "<hex>", …}}``: the values behind a quote's digest. Unsigned by itself."""
MEDIA_TYPE_GPU_EVIDENCE: Final = "application/vnd.cloister.nvidia-spdm"
"""SPDM GET_MEASUREMENTS request and its response with the signature, one after the other."""

MEDIA_TYPE_CRL: Final = "application/pkix-crl"
MEDIA_TYPE_COLLATERAL: Final = "application/vnd.cloister.intel-collateral+json"
"""What Intel signs about a platform, as one object (`cloister.endorsements.intel`)."""
MEDIA_TYPE_RIM: Final = "application/vnd.cloister.nvidia-rim+xml"
MEDIA_TYPE_OCSP: Final = "application/ocsp-response"
"""RFC 6960 appendix C. These four vouch for an item and travel among its endorsements."""

MAX_GPUS: Final = 16
"""GPUs of one machine; today's largest have eight."""


def gpu_item(index: int) -> str:
    """The item of the GPU that the driver numbers `index`; its endorsements are its chain."""
    if not 0 <= index < MAX_GPUS:
        raise ValueError(f"GPUs are numbered from 0 to {MAX_GPUS - 1}")
    return f"gpu{index}.evidence"
