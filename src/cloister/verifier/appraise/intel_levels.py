"""Which of Intel's TCB levels a platform reaches, what several states amount to, what is missing.

Source: Intel "Provisioning Certification Service" API version 4, "TCB Info", and how Intel's
quote verification library walks its levels: in the order listed, newest first; the first one
all of whose security versions are reached is the platform's. No policy is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias, TypeVar

from cloister.endorsements.intel import (
    IsvLevel,
    PckExtensions,
    TcbComponent,
    TcbInfo,
    TcbLevel,
)
from cloister.verifier.policy import UP_TO_DATE

OUT_OF_DATE: Final = "OutOfDate"
REVOKED: Final = "Revoked"

MODULE_BYTES: Final = 2
"""First bytes of a TEE TCB SVN: security version and version of the TDX module."""

_OUT_OF_DATE_FOR: Final = {
    UP_TO_DATE: OUT_OF_DATE,
    "SWHardeningNeeded": OUT_OF_DATE,
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}
"""What a platform's state becomes where its TDX module or quoting enclave is out of date."""

Level: TypeAlias = TcbLevel | IsvLevel
_Level = TypeVar("_Level", TcbLevel, IsvLevel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """One security version that a platform is short of."""

    component: str
    """``sgxtcbcomponents[0]``, ``tdxtcbcomponents[2]``, ``pcesvn``, ``TDX_01``: as in the TCB
    information, counted from zero."""
    category: str | None
    """Who updates it, where Intel says so: ``BIOS``, ``OS/VMM``."""
    type: str | None
    """What it is, where Intel says so: ``Early Microcode Update``, ``TDX Module``."""
    has: int
    needs: int
    tcb_date: datetime
    """Date of the level that needs it."""
    advisory_ids: tuple[str, ...]
    """Advisories open at the level that the platform has now."""


def platform_level(
    tcb_info: TcbInfo, pck: PckExtensions, tee_tcb_svn: bytes | None
) -> TcbLevel | None:
    """The first level that a platform reaches in every SGX component and the PCE's version.

    With the `tee_tcb_svn` of a TDX guest (16 bytes), in every TDX component as well; save that of
    TDX modules above version 0 (the second byte) the module's own levels judge the first two.
    """
    return next((level for level in tcb_info.levels if _reaches(level, pck, tee_tcb_svn)), None)


def isv_level(levels: Sequence[IsvLevel], isvsvn: int) -> IsvLevel | None:
    """The first level that an enclave or a TDX module of this security version reaches."""
    return next((level for level in levels if isvsvn >= level.isvsvn), None)


def converged(states: Sequence[str | None]) -> str | None:
    """What a platform's state, the first, becomes by those of its quoting enclave and TDX module.

    ``None`` where any of them has no level.
    """
    if None in states:
        return None
    platform, *others = states
    if REVOKED in states:
        return REVOKED
    if platform is not None and any(state != UP_TO_DATE for state in others):
        return _OUT_OF_DATE_FOR.get(platform, platform)
    return platform


def shortfalls(
    pck: PckExtensions, tee_tcb_svn: bytes | None, tcb_info: TcbInfo
) -> tuple[Shortfall, ...]:
    """Which security versions are short of the newest level that is ``UpToDate``.

    Where no level of a list is, its newest one counts. `tee_tcb_svn` is the guest's, 16 bytes, or
    ``None`` for SGX. Whether the TCB info is authentic and for this platform is not looked at.
    """
    goal = _goal(tcb_info.levels)
    if goal is None:
        return ()
    own = platform_level(tcb_info, pck, tee_tcb_svn)
    return (
        *_short_platform(pck, tee_tcb_svn, goal, () if own is None else own.advisory_ids),
        *(() if tee_tcb_svn is None else _short_module(tee_tcb_svn, tcb_info)),
    )


def _reaches(level: TcbLevel, pck: PckExtensions, tee_tcb_svn: bytes | None) -> bool:
    if pck.pcesvn < level.pcesvn or any(_below(pck.tcb_components, level.sgx_components)):
        return False
    if tee_tcb_svn is None:
        return True
    if level.tdx_components is None:
        return False
    first = MODULE_BYTES if tee_tcb_svn[1] else 0
    return not any(_below(tee_tcb_svn[first:], level.tdx_components[first:]))


def _below(have: Sequence[int], needed: Sequence[TcbComponent]) -> Iterator[bool]:
    return (has < component.svn for has, component in zip(have, needed, strict=True))


def _goal(levels: Sequence[_Level]) -> _Level | None:
    up_to_date = (level for level in levels if level.status == UP_TO_DATE)
    return next(up_to_date, levels[0] if levels else None)


def _short_platform(
    pck: PckExtensions, tee_tcb_svn: bytes | None, goal: TcbLevel, advisories: tuple[str, ...]
) -> Iterator[Shortfall]:
    yield from _short("sgxtcbcomponents", pck.tcb_components, goal.sgx_components, goal, advisories)
    pce = TcbComponent(svn=goal.pcesvn)
    if pck.pcesvn < goal.pcesvn:
        yield _shortfall("pcesvn", pck.pcesvn, pce, goal, advisories)
    if tee_tcb_svn is not None and goal.tdx_components is not None:
        # The module's own levels judge it; what the platform's say of it does not count.
        own = bytes([0xFF] * MODULE_BYTES) + tee_tcb_svn[MODULE_BYTES:]
        have = own if tee_tcb_svn[1] else tee_tcb_svn
        yield from _short("tdxtcbcomponents", have, goal.tdx_components, goal, advisories)


def _short_module(tee_tcb_svn: bytes, tcb_info: TcbInfo) -> Iterator[Shortfall]:
    isvsvn, version = tee_tcb_svn[:MODULE_BYTES]
    identity = tcb_info.tdx_module_identity(version) if version else None
    goal = None if identity is None else _goal(identity.levels)
    if identity is None or goal is None or isvsvn >= goal.isvsvn:
        return
    now = isv_level(identity.levels, isvsvn)
    needed = TcbComponent(svn=goal.isvsvn, category="OS/VMM", type="TDX Module")
    advisories = () if now is None else now.advisory_ids
    yield _shortfall(identity.id, isvsvn, needed, goal, advisories)


def _short(
    name: str,
    have: Sequence[int],
    needed: Sequence[TcbComponent],
    goal: TcbLevel,
    advisories: tuple[str, ...],
) -> Iterator[Shortfall]:
    for index, (has, component) in enumerate(zip(have, needed, strict=True)):
        if has < component.svn:
            yield _shortfall(f"{name}[{index}]", has, component, goal, advisories)


def _shortfall(
    name: str, has: int, needed: TcbComponent, goal: Level, advisories: tuple[str, ...]
) -> Shortfall:
    return Shortfall(
        component=name,
        category=needed.category,
        type=needed.type,
        has=has,
        needs=needed.svn,
        tcb_date=goal.tcb_date,
        advisory_ids=advisories,
    )
