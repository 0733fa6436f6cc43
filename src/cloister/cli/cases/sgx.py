"""Recorded quotes of SGX enclaves."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput
from cloister.cli.cases.tdx import QUOTE_LAYERS, expectations
from cloister.verifier.expected import CLAIM_PREFIX
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.sgx import FIELD_NAMES, PREFIX, SgxEvidence, verify_sgx

VERIFY = verify_sgx

LAYERS: Final = {
    **{(CPU, PREFIX + name): name for name in QUOTE_LAYERS},
    **{(CPU, f"{CLAIM_PREFIX}{name}"): "expectation" for name in FIELD_NAMES},
}


def read(case: CaseFiles) -> CaseInput:
    """The quote and collateral of a case, and what it expects of the enclave."""
    return CaseInput(
        evidence=SgxEvidence(quote=case.one("quote"), collateral=case.optional("collateral")),
        expected=expectations(case, FIELD_NAMES),
    )
