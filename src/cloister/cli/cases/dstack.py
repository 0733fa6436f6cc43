"""Recorded evidence of dstack guests."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases import tdx
from cloister.cli.cases.folder import CaseFiles, CaseInput
from cloister.verifier.appraise.dstack import EVENT_LOG
from cloister.verifier.expected import CLAIM_PREFIX
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.dstack import (
    EVENT_FIELDS,
    FIELD_NAMES,
    DstackEvidence,
    verify_dstack,
)
from cloister.verifier.platforms.tdx import TdxEvidence

VERIFY = verify_dstack

LAYERS: Final = {
    **tdx.LAYERS,
    (CPU, EVENT_LOG): "eventlog",
    **{(CPU, f"{CLAIM_PREFIX}{name}"): "expectation" for name in EVENT_FIELDS},
}


def read(case: CaseFiles) -> CaseInput:
    """The quote, its collateral, the event log and the application's document of a case."""
    return CaseInput(
        evidence=DstackEvidence(
            tdx=TdxEvidence(quote=case.one("quote"), collateral=case.optional("collateral")),
            event_log=case.optional("event_log"),
            app_compose=case.optional("app_compose"),
        ),
        expected=tdx.expectations(case, FIELD_NAMES),
    )
