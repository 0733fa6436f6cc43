"""One simulated Intel platform, judged by collateral that a test makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from cloister.endorsements.intel import Collateral, parse_pck_extensions
from cloister.endorsements.roots import Vendor
from cloister.evidence.dcap import parse_quote
from cloister.evidence.tdx import TdReport
from cloister.strictjson import JsonObject
from cloister.testing.simulated_dcap import SGX, TDX, SimulatedIntel, SimulatedPlatform
from cloister.verifier.appraise.intel_tcb import TcbJudgement, collateral_claims, judge_tcb
from cloister.verifier.authenticate.intel_collateral import authenticate_signed, check_signatures
from cloister.verifier.chain import authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, strict
from cloister.verifier.result import Claim, Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = 24 * 3600
INTEL = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
STRICT = strict()
GENEROUS = dataclasses.replace(STRICT, tcb_statuses=UNCHECKED, tcb_accepted_advisories=UNCHECKED)

Tee = Literal["sgx", "tdx"]


def policy(**fields: object) -> AppraisalPolicy:
    return dataclasses.replace(STRICT, **fields)  # type: ignore[arg-type]  # checked at run time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    claims: Mapping[str, Claim]
    judgement: TcbJudgement

    @property
    def broken(self) -> dict[str, tuple[str | None, str | None]]:
        return {
            name: (claim.code, claim.value)
            for name, claim in self.claims.items()
            if claim.finding is not Finding.AFFIRMING
        }

    def value(self, name: str) -> str | None:
        return self.claims[name].value


def judge(
    tee: Tee = "tdx",
    *,
    collateral: Collateral | None = None,
    platform: SimulatedPlatform = PLATFORM,
    policy: AppraisalPolicy = STRICT,
    at: datetime = NOW,
    authenticated: bool = True,
    chain: tuple[Any, ...] | None = None,
    **fields: bytes | int,
) -> Judged:
    """Judge a quote of `platform`, whose report holds `fields`, by `collateral`."""
    made = platform.tdx_quote(**fields) if tee == "tdx" else platform.sgx_quote(**fields)  # type: ignore[arg-type]  # no version or kind among the fields
    quote = parse_quote(made)
    ledger = Ledger()
    ledger.expect(*collateral_claims(tee, "x."))
    if collateral is None:
        collateral = INTEL.collateral(TDX if tee == "tdx" else SGX)
    signed = check_signatures(collateral, roots=INTEL.roots)
    authentic = authenticate_signed(signed, roots=INTEL.roots, at=at, ledger=ledger, prefix="x.")
    assert authentic is not None
    found = judge_tcb(
        signed.collateral,
        authenticated,
        tee=tee,
        pck=parse_pck_extensions(platform.certificate),
        pck_chain=authenticate_chain(
            platform.certificate,
            tuple(INTEL.cas.values()) if chain is None else chain,
            anchors=INTEL.roots.vendor(Vendor.INTEL),
            at=at,
        ),
        qe_report=quote.qe_report,
        td_report=quote.body if isinstance(quote.body, TdReport) else None,
        policy=policy,
        at=at,
        ledger=ledger,
        prefix="x.",
    )
    claims = {claim.name.removeprefix("x."): claim for claim in ledger.close(development=False)}
    return Judged(claims=claims, judgement=found)


def refused(code: str, value: str = "fail") -> tuple[str, str]:
    return code, value


def tdx(*levels: JsonObject, modules: list[JsonObject] | None = None) -> Collateral:
    return INTEL.collateral(tcb_info=INTEL.tcb_info(levels=levels, modules=modules))


def sgx(*levels: JsonObject) -> Collateral:
    return INTEL.collateral(SGX, tcb_info=INTEL.tcb_info(SGX, levels=levels))
