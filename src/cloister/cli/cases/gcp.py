"""Reads recorded cases of Google Cloud's virtual TPM."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput
from cloister.cli.cases.tpm import EXPECTATION_LAYERS, QUOTE_LAYERS, read_expected, read_quote
from cloister.verifier.authenticate import ak, tpm_log
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms import gcp

VERIFY: Final = gcp.verify_gcp

LAYERS: Final = {
    **{(CPU, claim): layer for claim, layer in QUOTE_LAYERS.items()},
    (CPU, gcp.ALL_BANKS): "all_banks",
    (CPU, tpm_log.REPLAY): "eventlog",
    (CPU, ak.CHAIN): "ak_chain",
    (CPU, ak.MATCHES): "ak_matches_certificate",
    **EXPECTATION_LAYERS,
}

_QUOTE: Final = "quote"


def read(case: CaseFiles) -> CaseInput:
    """The quotes of all banks, the key and what vouches for it, and the event log."""
    banks = [
        file.role.removeprefix(_QUOTE)
        for file in case.all(f"{_QUOTE}_")
        if not file.role.startswith("quote_signature")
    ]
    certificate = case.optional("ak_certificate")
    return CaseInput(
        evidence=gcp.GcpEvidence(
            quotes=tuple(read_quote(case, bank) for bank in banks),
            ak_public=case.optional("ak_tpmt_public"),
            ak=None if certificate is None else AkEvidence(certificate=certificate),
            event_log=case.optional("event_log"),
        ),
        expected=read_expected(case),
    )
