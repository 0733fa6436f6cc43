"""Intel's levels: how states converge, and what a platform is short of."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.endorsements.intel import TcbInfo, parse_pck_extensions, parse_tcb_info
from cloister.strictjson import JsonObject
from cloister.testing.simulated_dcap import (
    SGX,
    SimulatedIntel,
    document,
    isv_level,
    module_identity,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import SGX_SVNS, TDX_SVNS, TEE_TCB_SVN
from cloister.verifier.appraise.intel_levels import Shortfall, converged, platform_level
from cloister.verifier.appraise.intel_tcb import shortfalls

INTEL = SimulatedIntel(now=datetime(2026, 6, 1, tzinfo=UTC))
PCK = parse_pck_extensions(INTEL.platform().certificate)
MAY = datetime(2025, 5, 14, tzinfo=UTC)
ONE, TWO = "INTEL-SA-00615", "INTEL-SA-00837"

UP, OUT, REVOKED = "UpToDate", "OutOfDate", "Revoked"
SW, CONF, BOTH, OUT_CONF = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDateConfigurationNeeded",
)


@pytest.mark.parametrize(
    ("platform", "outdated"),
    [
        (UP, OUT),
        (SW, OUT),
        (CONF, OUT_CONF),
        (BOTH, OUT_CONF),
        (OUT, OUT),
        (OUT_CONF, OUT_CONF),
        (REVOKED, REVOKED),
        ("Splendid", "Splendid"),
    ],
)
def test_states_converge(platform: str, outdated: str) -> None:
    assert converged([platform]) == platform
    assert converged([platform, UP, UP]) == platform
    for others in ([OUT], [OUT, UP], [UP, OUT], [OUT, OUT]):
        assert converged([platform, *others]) == outdated
    for others in ([REVOKED], [REVOKED, UP], [UP, REVOKED], [OUT, REVOKED]):
        assert converged([platform, *others]) == REVOKED
    for missing in ([None, UP], [platform, None], [platform, UP, None], [REVOKED, None]):
        assert converged(missing) is None


def info(*levels: JsonObject, modules: list[JsonObject] | None = None, tee: str = "TDX") -> TcbInfo:
    made = INTEL.tcb_info(tee, levels=levels, modules=modules)
    return parse_tcb_info(document(made))


def test_a_platform_that_is_up_to_date_is_short_of_nothing() -> None:
    assert shortfalls(PCK, TEE_TCB_SVN, info(tcb_level())) == ()
    assert shortfalls(PCK, None, info(tcb_level(SGX), tee=SGX)) == ()
    assert shortfalls(PCK, None, info(tee=SGX)) == ()


def test_what_is_short_is_named_as_in_the_tcb_info() -> None:
    goal = tcb_level(
        sgx_svns=(4, *SGX_SVNS[1:3], 9, *SGX_SVNS[4:]), tdx_svns=(9, 9, 4, *TDX_SVNS[3:]), pcesvn=14
    )
    own = tcb_level(status="OutOfDate", advisories=[ONE, TWO])
    modules = [module_identity("TDX_01", isv_level(6), isv_level(2, "OutOfDate", advisories=[TWO]))]
    found = shortfalls(PCK, TEE_TCB_SVN, info(goal, own, modules=modules))
    assert [(one.component, one.has, one.needs) for one in found] == [
        ("sgxtcbcomponents[0]", 3, 4),
        ("sgxtcbcomponents[3]", 2, 9),
        ("pcesvn", 13, 14),
        ("tdxtcbcomponents[2]", 3, 4),
        ("TDX_01", 5, 6),
    ]
    first, third, *_, module = found
    assert first == Shortfall(
        component="sgxtcbcomponents[0]",
        category="BIOS",
        type="Early Microcode Update",
        has=3,
        needs=4,
        tcb_date=MAY,
        advisory_ids=(ONE, TWO),
    )
    assert (third.category, third.type) == (None, None)
    assert (module.category, module.type, module.advisory_ids) == ("OS/VMM", "TDX Module", (TWO,))


def test_the_newest_level_that_is_up_to_date_is_the_goal() -> None:
    hardening = tcb_level(status="SWHardeningNeeded", pcesvn=15)
    goal, older = tcb_level(pcesvn=14), tcb_level(pcesvn=13)
    (found,) = shortfalls(PCK, TEE_TCB_SVN, info(hardening, goal, older))
    assert (found.component, found.needs) == ("pcesvn", 14)


def test_where_nothing_is_up_to_date_the_newest_level_is_the_goal() -> None:
    levels = (tcb_level(SGX, SW, pcesvn=15), tcb_level(SGX, OUT, pcesvn=13))
    (found,) = shortfalls(PCK, None, info(*levels, tee=SGX))
    assert (found.component, found.needs, found.advisory_ids) == ("pcesvn", 15, ())


def test_a_platform_below_every_level() -> None:
    (found,) = shortfalls(PCK, None, info(tcb_level(SGX, pcesvn=15), tee=SGX))
    assert (found.component, found.advisory_ids) == ("pcesvn", ())


def test_a_module_of_version_0_is_compared_with_the_platforms_level() -> None:
    goal = tcb_level(tdx_svns=(9, 0, 3, *TDX_SVNS[3:]))
    modules = [module_identity("TDX_00", isv_level(9))]
    (found,) = shortfalls(PCK, bytes([5, 0, 3]) + bytes(13), info(goal, modules=modules))
    assert (found.component, found.type, found.has) == ("tdxtcbcomponents[0]", "TDX Module", 5)


def test_a_module_that_is_not_listed_is_short_of_nothing_known() -> None:
    assert shortfalls(PCK, bytes([5, 9, 3]) + bytes(13), info(tcb_level())) == ()


def test_sgx_levels_do_not_judge_a_guest() -> None:
    sgx = info(tcb_level(SGX), tee=SGX)
    assert platform_level(sgx, PCK, None) is not None
    assert platform_level(sgx, PCK, TEE_TCB_SVN) is None
