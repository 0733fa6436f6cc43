"""Judges an Intel platform by its collateral: which TCB it has, and whether the policy accepts it.

Source: Intel "Provisioning Certification Service" API version 4, "TCB Info" and "Enclave
Identity", with the comparisons of Intel's quote verification library. Claims, in order, each with
the prefix of the platform, after those of `cloister.verifier.authenticate.intel_collateral`:

1. ``collateral_age``: it was issued no longer ago than the policy allows.
2. ``tcb_evaluation_number``: it is no older data than the policy asks for.
3. ``fmspc_match``: the TCB info is for this TEE and this family of platforms (FMSPC, PCE-ID).
4. ``pck_revoked``: neither the platform's PCK certificate nor the CA above it is listed.
5. ``qe_identity_match``: the quoting enclave is Intel's, for this TEE, in the right mode.
6. ``tdx_module_signer`` (TDX): Intel signed the TDX module, which is of a version it knows.
7. ``platform_tcb``: the state of the first TCB level all of whose versions the platform reaches.
8. ``qe_tcb``: the state of the quoting enclave's.
9. ``tdx_module_tcb`` (TDX): the state of the TDX module's.
10. ``tcb_status``: the states converged to one, as Intel's library does.
11. ``tcb_advisories``: no advisory is open that the policy denies or does not accept.

Only compares. What Intel's library says beyond this about guests that were started before an
update of the TDX module ("relaunch advised") is not told apart from ``OutOfDate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from cloister.endorsements.certificates import serial_number
from cloister.endorsements.intel import (
    IntelCollateral,
    IsvLevel,
    PckExtensions,
    TcbLevel,
    TdxModuleIdentity,
)
from cloister.endorsements.intel_tcb_info import QE, SGX, TD_QE, TDX
from cloister.evidence.sgx import EnclaveReport
from cloister.evidence.tdx import TdReport
from cloister.strictjson import JsonObject
from cloister.verifier.appraise.intel_levels import (
    Shortfall,
    converged,
    isv_level,
    platform_level,
    shortfalls,
)
from cloister.verifier.appraise.intel_states import (
    ADVISORIES,
    PLATFORM_TCB,
    QE_TCB,
    TCB_STATUS,
    TDX_MODULE_TCB,
    Claims,
    State,
    StateJudge,
    all_advisories,
)
from cloister.verifier.authenticate.intel_collateral import CLAIMS as AUTHENTICATION_CLAIMS
from cloister.verifier.chain import Chain, same_key
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked

Tee: TypeAlias = Literal["sgx", "tdx"]

AGE: Final = "collateral_age"
EVALUATION_NUMBER: Final = "tcb_evaluation_number"
FMSPC_MATCH: Final = "fmspc_match"
PCK_REVOKED: Final = "pck_revoked"
QE_IDENTITY_MATCH: Final = "qe_identity_match"
TDX_MODULE_SIGNER: Final = "tdx_module_signer"

NOT_SEPARATE: Final = "in_platform_tcb"
"""Value of ``tdx_module_tcb`` for modules of version 0, which platform levels cover."""

_TDX_ONLY: Final = (TDX_MODULE_SIGNER, TDX_MODULE_TCB)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbJudgement:
    """What the collateral says about one platform. Worth what the claims in the ledger say."""

    platform: TcbLevel | None
    qe: IsvLevel | None
    tdx_module_id: str | None
    """``TDX_01`` and so on; ``None`` for SGX and for TDX modules of version 0."""
    tdx_module: IsvLevel | None
    status: str | None
    """The states converged to one, as Intel's library does; ``None`` where one is missing."""
    advisory_ids: tuple[str, ...] | None
    """Advisories open at any of the levels, sorted; ``None`` where no platform level matches."""
    facts: JsonObject
    """``collateral`` and, for TDX modules above version 0, ``tdx_module``: merge into the facts."""
    not_proven: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Levels:
    """The level that each part reaches."""

    platform: TcbLevel | None
    qe: IsvLevel | None
    tdx_module: IsvLevel | None


def collateral_claims(tee: Tee, prefix: str) -> tuple[str, ...]:
    """Names of all claims about collateral, authentication's first, in order of reporting."""
    names = (
        *AUTHENTICATION_CLAIMS,
        AGE,
        EVALUATION_NUMBER,
        FMSPC_MATCH,
        PCK_REVOKED,
        QE_IDENTITY_MATCH,
        TDX_MODULE_SIGNER,
        PLATFORM_TCB,
        QE_TCB,
        TDX_MODULE_TCB,
        TCB_STATUS,
        ADVISORIES,
    )
    return tuple(prefix + name for name in names if tee == "tdx" or name not in _TDX_ONLY)


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
    would be affirmed is recorded as not decided. `td_report` is required for ``tdx``. Levels are
    looked up even where the collateral belongs to another platform, and say so little then.
    """
    if (tee == "tdx") != (td_report is not None):
        raise TypeError("a TDX guest is judged with its report, an SGX enclave without")
    claims = Claims(ledger=ledger if authenticated else ledger.stated(), prefix=prefix)
    judge = _Judge(collateral=collateral, policy=policy, at=at, claims=claims)
    judge.age()
    judge.evaluation_number()
    judge.belongs(tee, pck)
    judge.revocation(pck_chain)
    judge.quoting_enclave(tee, qe_report)
    svn = None if td_report is None else td_report.tee_tcb_svn
    module = None if not svn or not svn[1] else collateral.tcb_info.tdx_module_identity(svn[1])
    if td_report is not None:
        judge.module_signer(td_report, module)
    found = _Levels(
        platform=platform_level(collateral.tcb_info, pck, svn),
        qe=isv_level(collateral.qe_identity.levels, qe_report.isvsvn),
        tdx_module=isv_level(module.levels, svn[0]) if module and svn else None,
    )
    states = _states(collateral, found, module, svn)
    StateJudge(policy=policy, at=at, claims=claims).judge(states)
    if svn is not None and not svn[1]:
        claims.affirm(
            TDX_MODULE_TCB,
            "The TDX module is of version 0, which the platform's TCB level covers.",
            value=NOT_SEPARATE,
        )
    return _judgement(collateral, found, states, None if svn is None else svn[1])


def _states(
    collateral: IntelCollateral,
    found: _Levels,
    module: TdxModuleIdentity | None,
    svn: bytes | None,
) -> list[State]:
    """The platform's first. TDX modules above version 0 have a state of their own."""
    states = [
        State(PLATFORM_TCB, "platform", found.platform, collateral.tcb_info.levels),
        State(QE_TCB, "quoting enclave", found.qe, collateral.qe_identity.levels),
    ]
    if svn is not None and svn[1]:
        levels = () if module is None else module.levels
        states.append(State(TDX_MODULE_TCB, "TDX module", found.tdx_module, levels))
    return states


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """The steps up to the states, each of which makes one claim."""

    collateral: IntelCollateral
    policy: AppraisalPolicy
    at: datetime
    claims: Claims

    def age(self) -> None:
        """TCB info, QE identity and PCK list; the root's list is renewed once a year only."""
        issued = min(
            self.collateral.tcb_info.issue_date,
            self.collateral.qe_identity.issue_date,
            self.collateral.pck_crl.last_update_utc,
        )
        age, limit = self.at - issued, self.policy.max_collateral_age_s
        self.claims.check(
            AGE,
            holds=isinstance(limit, Unchecked) or age <= timedelta(seconds=limit),
            affirmed=f"The oldest part of the collateral was issued {issued:%Y-%m-%d %H:%M} UTC.",
            code="collateral_too_old",
            refused=f"Part of the collateral was issued {issued:%Y-%m-%d %H:%M} UTC, longer ago"
            " than the policy allows.",
        )

    def evaluation_number(self) -> None:
        """No falling back to data from before a TCB recovery."""
        numbers = _numbers(self.collateral)
        minimum = self.policy.tcb_minimum_evaluation_number
        self.claims.check(
            EVALUATION_NUMBER,
            holds=isinstance(minimum, Unchecked) or min(numbers) >= minimum,
            affirmed=f"The collateral has TCB evaluation data number {_joined(numbers)}.",
            code="tcb_evaluation_number",
            refused=f"The collateral has TCB evaluation data number {_joined(numbers)}, and the"
            f" policy asks for {minimum} at least.",
            value=_joined(numbers),
        )

    def belongs(self, tee: Tee, pck: PckExtensions) -> None:
        """TCB info for this TEE and this family of platforms."""
        info = self.collateral.tcb_info
        if info.id != {"sgx": SGX, "tdx": TDX}[tee]:
            self.claims.refuse(
                FMSPC_MATCH,
                "tcb_info_mismatch",
                f"The TCB info is for {info.id}, and the quote for {tee.upper()}.",
            )
            return
        self.claims.check(
            FMSPC_MATCH,
            holds=(info.fmspc, info.pceid) == (pck.fmspc, pck.pceid),
            affirmed=f"The TCB info is for the platform's family, FMSPC {pck.fmspc.hex()}.",
            code="fmspc_mismatch",
            refused=f"The TCB info is for FMSPC {info.fmspc.hex()}, PCE-ID {info.pceid.hex()}; the"
            f" platform has {pck.fmspc.hex()}, {pck.pceid.hex()}.",
        )

    def revocation(self, chain: Chain) -> None:
        """The list has to be that of the CA which issued the PCK certificate."""
        crl, root_crl = self.collateral.pck_crl, self.collateral.root_crl
        if crl.issuer != chain.leaf.issuer or not self._same_ca(chain):
            self.claims.refuse(
                PCK_REVOKED,
                "crl_mismatch",
                "The revocation list is another CA's than the one that issued the platform's PCK"
                " certificate.",
                value="unknown",
            )
            return
        revoked = crl.get_revoked_certificate_by_serial_number(serial_number(chain.leaf))
        above = (
            root_crl.get_revoked_certificate_by_serial_number(serial_number(certificate))
            for certificate in chain.certificates[1:-1]
        )
        listed = revoked is not None or any(entry is not None for entry in above)
        self.claims.check(
            PCK_REVOKED,
            holds=not listed,
            affirmed="Neither the platform's PCK certificate nor its CA was revoked.",
            code="revoked",
            refused="The platform's PCK certificate, or the CA that issued it, was revoked.",
            value="yes" if listed else "no",
        )

    def quoting_enclave(self, tee: Tee, report: EnclaveReport) -> None:
        """Enclave identity, all but the security version."""
        identity = self.collateral.qe_identity
        differing = [
            name
            for name, matches in (
                ("id", identity.id == {"sgx": QE, "tdx": TD_QE}[tee]),
                ("mrsigner", report.mrsigner == identity.mrsigner),
                ("isvprodid", report.isvprodid == identity.isvprodid),
                (
                    "miscselect",
                    _masked(report.miscselect, identity.miscselect_mask) == identity.miscselect,
                ),
                (
                    "attributes",
                    _masked(report.attributes, identity.attributes_mask) == identity.attributes,
                ),
            )
            if not matches
        ]
        self.claims.check(
            QE_IDENTITY_MATCH,
            holds=not differing,
            affirmed="The quoting enclave is the one that Intel names for this TEE.",
            code="qe_identity_mismatch",
            refused="The quoting enclave is not the one that Intel names for this TEE: differs in"
            f" {', '.join(differing)}.",
        )

    def module_signer(self, report: TdReport, identity: TdxModuleIdentity | None) -> None:
        """Signer and attributes of the TDX module."""
        version = report.tee_tcb_svn[1]
        signer = self.collateral.tcb_info.tdx_module
        if version:
            signer = None if identity is None else identity.signer
        self.claims.check(
            TDX_MODULE_SIGNER,
            holds=signer is not None
            and report.mrsigner_seam == signer.mrsigner
            and _masked(report.seam_attributes, signer.attributes_mask) == signer.attributes,
            affirmed="Intel signed the TDX module.",
            code="tdx_module_mismatch",
            refused=f"The TCB info knows no TDX module of version {version}."
            if signer is None
            else "The TDX module is not signed by whom the TCB info names, or in another mode.",
        )

    def _same_ca(self, chain: Chain) -> bool:
        """By key as well as by name, as far as the chain was found."""
        return len(chain.certificates) == 1 or same_key(
            chain.certificates[1], self.collateral.pck_crl_chain[0]
        )


def _judgement(
    collateral: IntelCollateral, found: _Levels, states: Sequence[State], version: int | None
) -> TcbJudgement:
    platform = found.platform
    levels = [state.level for state in states if state.level is not None]
    advisories = None if platform is None else all_advisories(levels)
    numbers = _numbers(collateral)
    facts: JsonObject = {
        "collateral": {
            "tcb_evaluation_data_number": collateral.tcb_info.tcb_evaluation_data_number,
            "platform_tcb_date": (
                None if platform is None else f"{platform.tcb_date:%Y-%m-%dT%H:%M:%SZ}"
            ),
            "advisory_ids": None if platform is None else list(platform.advisory_ids),
        }
    }
    module = f"TDX_{version:02X}" if version else None
    if module is not None:
        facts["tdx_module"] = module
    return TcbJudgement(
        platform=platform,
        qe=found.qe,
        tdx_module_id=module,
        tdx_module=found.tdx_module,
        status=converged([None if state.level is None else state.level.status for state in states]),
        advisory_ids=advisories,
        facts=facts,
        not_proven=(
            ()
            if len(set(numbers)) == 1
            else (
                f"Intel's TCB info and QE identity come from different TCB recoveries"
                f" ({_joined(numbers)}): one of them is not the newest.",
            )
        ),
    )


def _numbers(collateral: IntelCollateral) -> tuple[int, int]:
    return (
        collateral.tcb_info.tcb_evaluation_data_number,
        collateral.qe_identity.tcb_evaluation_data_number,
    )


def _joined(numbers: tuple[int, int]) -> str:
    """``19``, or ``19/18`` where TCB info and QE identity differ."""
    return "/".join(map(str, dict.fromkeys(numbers)))


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(byte & bits for byte, bits in zip(value, mask, strict=True))


__all__ = [
    "Shortfall",
    "TcbJudgement",
    "Tee",
    "collateral_claims",
    "judge_tcb",
    "shortfalls",
]
