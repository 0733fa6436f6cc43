"""Verifies evidence of a TDX guest: a DCAP quote, its collateral, and the guest's event log.

Steps, in the order of the claims: the quote (`cloister.verifier.authenticate.dcap`), what kind of
guest it shows (`cloister.verifier.appraise.tdx`), its platform by Intel's collateral
(`cloister.verifier.platforms.dcap`), the log (`cloister.verifier.appraise.tdx_log`), and what the
caller expects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.evidence.ccel import CcelLog, replay_rtmrs
from cloister.evidence.eventlog import EventType
from cloister.evidence.tdx import TdReport
from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise import tdx as appraise
from cloister.verifier.appraise.tdx_log import LOG_CLAIMS, judge_ccel
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.dcap import (
    CollateralInput,
    JudgedQuote,
    claims_after,
    claims_before,
    judge_quote,
)
from cloister.verifier.policy import AppraisalPolicy

PREFIX: Final = "tdx."
PLATFORM: Final = "Intel TDX"
MEMORY: Final = "tdx"
NO_MEMORY: Final = "none"

REGISTER_NAMES: Final = (
    "mr_td",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "mr_seam",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "td_attributes",
    "xfam",
    "mr_service_td",
)
FIELD_NAMES: Final = ("report_data", *REGISTER_NAMES)
"""What a caller may expect something of."""

NOT_PROVEN: Final = (
    "What the registers should hold is only known where you compare them with reference values.",
    "MRCONFIGID, MROWNER and MROWNERCONFIG are chosen by whoever starts the guest.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxEvidence:
    """A quote of a TDX guest, with what came beside it."""

    quote: bytes
    """As it came; zeros may follow it."""
    collateral: CollateralInput | None = field(default=None, repr=False)
    certificates: tuple[bytes, ...] = ()
    """The platform's certificate and its issuers (DER), for quotes that do not hold them."""
    ccel_event_log: bytes | None = field(default=None, repr=False)
    """What the guest's firmware and boot loader measured (the area that the CCEL table names)."""


def claim_names(
    evidence: TdxEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of all claims about `evidence`, in order."""
    return (
        *claims_before(PREFIX),
        *appraise.CLAIMS,
        *claims_after("tdx", PREFIX, collateral=evidence.collateral, policy=policy),
        *(() if evidence.ccel_event_log is None else LOG_CLAIMS),
        *expected.names,
    )


def verify_tdx(
    evidence: TdxEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no TDX quote has.
    """
    check_names(expected, FIELD_NAMES)
    ledger.expect(*claim_names(evidence, policy, expected))
    judged = judge_quote(
        evidence.quote,
        tee="tdx",
        prefix=PREFIX,
        collateral=evidence.collateral,
        certificates=evidence.certificates,
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    if judged is None or not isinstance(judged.quote.body, TdReport):
        return Outcome(platform=PLATFORM, memory_confidentiality=MEMORY, facts={})
    report = judged.quote.body
    if judged.authenticated is not None:
        appraise.appraise_td(judged.authenticated, policy=policy, ledger=ledger)
    else:
        appraise.appraise_stated_td(report, policy=policy, ledger=ledger)
    log = None
    if evidence.ccel_event_log is not None:
        log = judge_ccel(
            evidence.ccel_event_log, report.rtmrs, authenticated=judged.proven, ledger=ledger
        )
    compare(expected, fields(report), ledger if judged.proven else ledger.stated())
    return _outcome(judged, report, log)


def fields(report: TdReport) -> dict[str, bytes | None]:
    """The values of `FIELD_NAMES`; ``None`` for what TDX 1.0 does not report."""
    return {
        "report_data": report.report_data,
        "mr_td": report.mr_td,
        "mr_config_id": report.mr_config_id,
        "mr_owner": report.mr_owner,
        "mr_owner_config": report.mr_owner_config,
        "mr_seam": report.mr_seam,
        **{f"rtmr{number}": value for number, value in enumerate(report.rtmrs)},
        "td_attributes": report.td_attributes,
        "xfam": report.xfam,
        "mr_service_td": report.mr_service_td,
    }


def registers(report: TdReport) -> dict[str, bytes]:
    """The values of `REGISTER_NAMES`, as far as the report has them."""
    found = fields(report)
    return {name: value for name in REGISTER_NAMES if (value := found[name]) is not None}


def _outcome(judged: JudgedQuote, report: TdReport, log: CcelLog | None) -> Outcome:
    return Outcome(
        platform=PLATFORM,
        # A debugger outside reads what the hardware encrypts.
        memory_confidentiality=NO_MEMORY if report.debug else MEMORY,
        facts=judged.facts | _facts(report) | ({} if log is None else _log_facts(log, report)),
        development=judged.development,
        bound=report.report_data if judged.proven else None,
        registers=registers(report) if judged.proven else {},
        not_proven=(*judged.not_proven, *NOT_PROVEN),
    )


def _facts(report: TdReport) -> JsonObject:
    values = {
        **fields(report),
        "tee_tcb_svn": report.tee_tcb_svn,
        "mrsigner_seam": report.mrsigner_seam,
        "seam_attributes": report.seam_attributes,
        "tee_tcb_svn2": report.tee_tcb_svn2,
    }
    return {name: value.hex() for name, value in values.items() if value is not None}


def _log_facts(log: CcelLog, report: TdReport) -> JsonObject:
    """Where the log leads, for the registers that it extends; events include its header."""
    replayed = replay_rtmrs(log.events)
    touched = sorted({e.pcr for e in log.events if e.type != EventType.EV_NO_ACTION})
    found: JsonObject = {
        "events": len(log.events) + 1,
        "sha384": {f"rtmr{number}": replayed[number].hex() for number in touched},
    }
    matches = {f"rtmr{number}": replayed[number] == report.rtmrs[number] for number in touched}
    if not all(matches.values()):
        found["matches"] = dict[str, Json](matches)
    return {"eventlog_replay": found}
