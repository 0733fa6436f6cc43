"""Judges an Intel platform by its collateral: which TCB it has, and whether the policy accepts it.

(Steps below.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cloister.endorsements.intel import (
    IntelCollateral,
    IsvLevel,
    PckExtensions,
    TcbInfo,
    TcbLevel,
)
from cloister.evidence.sgx import EnclaveReport
from cloister.evidence.tdx import TdReport
from cloister.strictjson import JsonObject
from cloister.verifier.chain import Chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy

Tee = Literal["sgx", "tdx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbJudgement:
    """What the collateral says about one platform. Worth what the claims in the ledger say."""

    platform: TcbLevel | None
    qe: IsvLevel | None
    tdx_module_id: str | None
    """``TDX_01`` and so on; ``None`` for SGX and for TDX modules of version 0."""
    tdx_module: IsvLevel | None
    status: str | None
    """The three states converged to one as Intel's library does; ``None`` where one is missing."""
    advisory_ids: tuple[str, ...] | None
    facts: JsonObject
    """``collateral`` and, for TDX modules above version 0, ``tdx_module``: merge into the facts."""
    not_proven: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """One security version that a platform is short of."""

    component: str
    """``sgxtcbcomponents[0]``, ``tdxtcbcomponents[2]``, ``pcesvn``, ``TDX_01 isvsvn``; counted as
    in the TCB information, from zero."""
    category: str | None
    type: str | None
    has: int
    needs: int
    tcb_date: datetime
    """Date of the level that needs it."""
    advisory_ids: tuple[str, ...]
    """Advisories open at the platform's own level."""


def collateral_claims(tee: Tee, prefix: str) -> tuple[str, ...]:
    """Names of all claims about collateral, authentication's first, in order of reporting."""
    raise NotImplementedError


def judge_tcb(
    collateral: IntelCollateral,
    authenticated: bool,
    *,
    tee: Tee,
    pck: PckExtensions,
    pck_chain: Chain,
    qe_report: EnclaveReport,
    td_report: TdReport | None,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
    prefix: str,
) -> TcbJudgement:
    """Make every claim of `collateral_claims` that authentication does not make.

    `authenticated` says whether collateral *and* quote were authenticated; otherwise what
    would be affirmed is recorded as not decided. `td_report` is required for ``tdx``.
    """
    raise NotImplementedError


def shortfalls(
    pck: PckExtensions, tee_tcb_svn: bytes | None, tcb_info: TcbInfo
) -> tuple[Shortfall, ...]:
    """Which security versions are short of the newest level that is ``UpToDate``."""
    raise NotImplementedError
