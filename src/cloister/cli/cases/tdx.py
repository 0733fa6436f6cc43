"""Recorded quotes of TDX guests."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput, input_bytes
from cloister.verifier.appraise.tdx_log import EVENT_LOG
from cloister.verifier.expected import CLAIM_PREFIX, Expected
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.tdx import FIELD_NAMES, PREFIX, TdxEvidence, verify_tdx

VERIFY = verify_tdx

QUOTE_LAYERS: Final = (
    "parse",
    "quote_signature",
    "ak_binding",
    "qe_report_signature",
    "pck_chain",
    "debug",
    "tcb_info_sig",
    "qe_identity_sig",
    "tcb_signer_chain",
    "pck_crl_sig",
    "root_crl_sig",
    "fmspc_match",
    "qe_identity_match",
    "pck_revoked",
    "collateral_time",
    "platform_tcb",
    "qe_tcb",
    "time",
)
"""Layers of every DCAP quote; the claims have the same names, behind the platform's prefix."""

LAYERS: Final = {
    **{
        (CPU, PREFIX + name): name
        for name in (*QUOTE_LAYERS, "sept_ve_disable", "tdx_module_tcb", "tdx_module_signer")
    },
    (CPU, EVENT_LOG): "eventlog",
    **{(CPU, f"{CLAIM_PREFIX}{name}"): "expectation" for name in FIELD_NAMES},
}


def read(case: CaseFiles) -> CaseInput:
    """The quote, collateral and event log of a case, and what it expects of the registers."""
    return CaseInput(
        evidence=TdxEvidence(
            quote=case.one("quote"),
            collateral=case.optional("collateral"),
            ccel_event_log=case.optional("ccel_event_log"),
        ),
        expected=expectations(case, FIELD_NAMES),
    )


def expectations(case: CaseFiles, names: tuple[str, ...]) -> Expected:
    """The inputs ``expected_…`` of a case, for those of `names` that it has."""
    values = {name: input_bytes(case, f"expected_{name}") for name in names}
    return Expected(values={name: value for name, value in values.items() if value is not None})
