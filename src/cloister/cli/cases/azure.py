"""Reads recorded cases of Azure confidential VMs."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput
from cloister.cli.cases.tdx import expectations
from cloister.cli.cases.tpm import QUOTE_LAYERS, read_quote
from cloister.verifier.appraise import snp as appraise_snp
from cloister.verifier.authenticate import ak, hcl, tpm_log, tpm_quote
from cloister.verifier.authenticate import snp as authenticate_snp
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms import azure, tdx

VERIFY: Final = azure.verify_azure

_SNP: Final = {
    authenticate_snp.SIGNATURE: "snp_signature",
    authenticate_snp.CHAIN: "snp_chain",
    authenticate_snp.TIME: "snp_time",
    authenticate_snp.CERTIFICATE_TCB: "snp_leaf_tcb_matches_report",
    authenticate_snp.CHIP_ID: "snp_leaf_chip_id_matches_report",
    appraise_snp.DEBUG: "snp_debug",
}
_TDX: Final = {
    "debug": "debug",
    **{
        name: f"td_{name}"
        for name in ("quote_signature", "pck_chain", "platform_tcb", "qe_tcb", "collateral_time")
    },
    "time": "td_time",
    "tdx_module_tcb": "td_module_tcb",
}

LAYERS: Final = {
    (CPU, azure.HCL): "parse",
    (CPU, hcl.RUNTIME_DATA): "hcl_runtime_data_hash",
    (CPU, hcl.TD_QUOTE): "td_quote_matches_hcl",
    **{(CPU, claim): layer for claim, layer in _SNP.items()},
    **{(CPU, tdx.PREFIX + claim): layer for claim, layer in _TDX.items()},
    **{
        (azure.VTPM, claim): layer
        for claim, layer in QUOTE_LAYERS.items()
        if claim != tpm_quote.FORMAT
    },
    (azure.VTPM, ak.CHAIN): "ak_chain",
    (azure.VTPM, ak.TIME): "ak_time",
    (azure.VTPM, ak.MATCHES): "ak_matches_hcl",
    (azure.VTPM, tpm_log.REPLAY): "eventlog",
    (azure.VTPM, "expected.extra_data"): "expectation",
}


def read(case: CaseFiles) -> CaseInput:
    """The paravisor's report, what vouches for its hardware, and the virtual TPM's quote."""
    certificate = case.optional("ak_certificate_as_read")
    if certificate is None:  # an empty one is there, and no certificate
        certificate = case.optional("ak_certificate")
    evidence = azure.AzureEvidence(
        hcl_report=case.one("hcl_report"),
        quote=read_quote(case),
        snp_certificates=tuple(file.data for file in case.all("leaf_cert")),
        td_quote=case.optional("td_quote"),
        td_collateral=case.optional("collateral"),
        ak=(
            None
            if certificate is None
            else AkEvidence(
                certificate=certificate,
                intermediates=tuple(file.data for file in case.all("ak_intermediate")),
            )
        ),
        event_log=case.optional("event_log"),
    )
    return CaseInput(evidence=evidence, expected=expectations(case, azure.field_names(evidence)))
