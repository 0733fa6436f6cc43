"""Recorded documents of AWS NitroTPMs."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput
from cloister.cli.cases.nitro import read_expected
from cloister.verifier.appraise.nitro_tpm import FIELD_NAMES, INSTANCE, REGISTERS
from cloister.verifier.authenticate import tpm_log
from cloister.verifier.authenticate.nitro import CHAIN, SIGNATURE, TIME
from cloister.verifier.expected import CLAIM_PREFIX
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.nitro import DOCUMENT
from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm

VERIFY = verify_nitro_tpm

LAYERS: Final = {
    (CPU, DOCUMENT): "parse",
    (CPU, SIGNATURE): "cose_signature",
    (CPU, CHAIN): "chain",
    (CPU, TIME): "time",
    (CPU, INSTANCE): "instance",
    (CPU, REGISTERS): "registers",
    (CPU, tpm_log.REPLAY): "eventlog",
    **{(CPU, f"{CLAIM_PREFIX}{name}"): "expectation" for name in FIELD_NAMES},
}


def read(case: CaseFiles) -> CaseInput:
    """The document, in whatever it is wrapped, the event log, and what the case expects."""
    return CaseInput(
        evidence=NitroTpmEvidence(
            document=case.one("document"), event_log=case.optional("event_log")
        ),
        expected=read_expected(case),
    )
