"""Reads recorded cases of TPM quotes and event logs."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput, input_bytes
from cloister.errors import MalformedError
from cloister.evidence.pcrs import PcrValues, parse_pcrs_json
from cloister.verifier.appraise.tpm_quote import FIELD_NAMES
from cloister.verifier.authenticate import tpm_log, tpm_quote
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm

VERIFY: Final = verify_tpm

QUOTE_LAYERS: Final = {
    tpm_quote.FORMAT: "parse",
    tpm_quote.MAGIC: "attest_magic",
    tpm_quote.TYPE: "attest_type",
    tpm_quote.SIGNATURE: "signature",
    tpm_quote.PCR_DIGEST: "pcr_digest",
}
EXPECTATION_LAYERS: Final = {
    (CPU, f"expected.{name}"): "expectation" for name in ("extra_data", "pcr_digest")
}

LAYERS: Final = {
    (CPU, tpm_log.FORMAT): "parse",
    (CPU, tpm_log.REPLAY): "replay",
    **{(CPU, claim): layer for claim, layer in QUOTE_LAYERS.items()},
    **EXPECTATION_LAYERS,
}


def read(case: CaseFiles) -> CaseInput:
    """The quote, the event log, or both."""
    certificate = case.optional("ak_certificate")
    public = case.optional("ak_tpm2b_public") or case.optional("ak_tpmt_public")
    return CaseInput(
        evidence=TpmEvidence(
            quote=None if case.optional("quote") is None else read_quote(case),
            ak_public=public or case.optional("ak_public"),
            ak=None if certificate is None else AkEvidence(certificate=certificate),
            event_log=case.optional("event_log"),
        ),
        expected=read_expected(case),
    )


def read_quote(case: CaseFiles, suffix: str = "") -> QuoteEvidence:
    """The quote, signature and register values whose roles end with `suffix`."""
    bare = case.optional(f"quote_signature_raw{suffix}")
    return QuoteEvidence(
        quote=case.one(f"quote{suffix}"),
        signature=case.one(f"quote_signature{suffix}") if bare is None else bare,
        pcrs=read_pcrs(case.one(f"pcr_values{suffix}")),
        bare_signature=bare is not None,
    )


def read_pcrs(data: bytes) -> PcrValues | bytes:
    """Register values as JSON; anything else is a file of tpm2-tools, or nothing that decodes."""
    if not data.lstrip().startswith(b"{"):
        return data
    try:
        return parse_pcrs_json(data)
    except MalformedError:
        return data


def read_expected(case: CaseFiles) -> Expected:
    """What the caller expects of the quote."""
    wanted = {name: input_bytes(case, f"expected_{name}") for name in FIELD_NAMES}
    return Expected(values={name: value for name, value in wanted.items() if value is not None})
