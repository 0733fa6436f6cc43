"""The states of Intel platforms: which level is reached, and what a policy accepts of it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from cloister.endorsements.intel import Collateral
from cloister.testing.simulated_dcap import SGX, isv_level, module_identity, tcb_level
from cloister.testing.simulated_dcap_parts import SGX_SVNS, TDX_SVNS, TEE_TCB_SVN
from cloister.verifier.policy import UNCHECKED
from support.intel_judging import DAY, GENEROUS, INTEL, NOW, judge, policy, refused, sgx, tdx

# ---------------------------------------------------------------------- platform levels


@pytest.mark.parametrize("index", range(16))
def test_every_sgx_component_counts(index: int) -> None:
    svns = list(SGX_SVNS)
    level = tcb_level(SGX, sgx_svns=[*svns[:index], svns[index] + 1, *svns[index + 1 :]])
    assert judge("sgx", collateral=sgx(tcb_level(SGX))).broken == {}
    found = judge("sgx", collateral=sgx(level))
    assert found.broken == {
        "platform_tcb": refused("tcb_no_match", "no_matching_level"),
        "tcb_status": ("not_checked", None),
    }


@pytest.mark.parametrize("index", range(2, 16))
def test_every_tdx_component_counts(index: int) -> None:
    have = bytearray(TEE_TCB_SVN)
    have[index] = 7
    level = tcb_level(tdx_svns=[*TDX_SVNS[:index], 7, *TDX_SVNS[index + 1 :]])
    assert judge(collateral=tdx(level), tee_tcb_svn=bytes(have)).broken == {}
    have[index] = 6
    assert "platform_tcb" in judge(collateral=tdx(level), tee_tcb_svn=bytes(have)).broken


def test_the_pce_version_counts() -> None:
    level = tcb_level(SGX, pcesvn=13)
    assert judge("sgx", collateral=sgx(level)).broken == {}
    older = INTEL.platform(pcesvn=12)
    assert "platform_tcb" in judge("sgx", platform=older, collateral=sgx(level)).broken


def test_the_first_level_that_is_reached_counts() -> None:
    newer = tcb_level(pcesvn=14, dated="2026-05-01T00:00:00Z")
    own = tcb_level(status="SWHardeningNeeded", dated="2025-05-14T00:00:00Z")
    older = tcb_level(status="OutOfDate", pcesvn=1, dated="2024-01-01T00:00:00Z")
    found = judge(collateral=tdx(newer, own, older), policy=GENEROUS)
    assert found.value("platform_tcb") == "SWHardeningNeeded"
    assert found.judgement.facts["collateral"] == {
        "tcb_evaluation_data_number": 19,
        "platform_tcb_date": "2025-05-14T00:00:00Z",
        "advisory_ids": [],
    }


def test_no_level_at_all() -> None:
    found = judge(collateral=tdx())
    assert found.broken["platform_tcb"] == refused("tcb_no_match", "no_matching_level")
    assert found.judgement.facts["collateral"] == {
        "tcb_evaluation_data_number": 19,
        "platform_tcb_date": None,
        "advisory_ids": None,
    }


STATES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]


@pytest.mark.parametrize("status", STATES)
def test_a_state_is_accepted_if_the_policy_names_it(status: str) -> None:
    collateral = sgx(tcb_level(SGX, status))
    accepting = policy(tcb_statuses=(status,) if status == "UpToDate" else ("UpToDate", status))
    assert judge("sgx", collateral=collateral, policy=accepting).broken == {}
    found = judge("sgx", collateral=collateral)
    if status != "UpToDate":
        assert found.broken == {
            "platform_tcb": refused("tcb_status", status),
            "tcb_status": refused("tcb_status", status),
        }


@pytest.mark.parametrize("status", ["Revoked"])
@pytest.mark.parametrize("grace", [UNCHECKED, 10 * 365 * DAY])
def test_revoked_is_never_accepted(status: str, grace: Any) -> None:
    generous = dataclasses.replace(GENEROUS, tcb_grace_s=grace)
    newer = tcb_level(SGX, pcesvn=14, dated="2026-05-31T00:00:00Z")
    good, bad = sgx(newer, tcb_level(SGX, "OutOfDate")), sgx(newer, tcb_level(SGX, status))
    assert judge("sgx", collateral=good, policy=generous).broken == {}
    assert judge("sgx", collateral=bad, policy=generous).broken == {
        "platform_tcb": refused("tcb_status", status),
        "tcb_status": refused("tcb_status", status),
    }


def test_a_state_that_is_not_known_needs_an_explicit_wish() -> None:
    collateral = sgx(tcb_level(SGX, "Splendid"))
    every = policy(tcb_statuses=tuple(STATES))
    assert judge("sgx", policy=every).broken == {}
    assert judge("sgx", collateral=collateral, policy=every).broken["platform_tcb"] == refused(
        "tcb_status", "Splendid"
    )


def test_states_taken_together_must_be_accepted_too() -> None:
    """Each is accepted on its own, but together they are out of date *and* need configuration."""
    accepting = policy(tcb_statuses=("UpToDate", "ConfigurationNeeded", "OutOfDate"))
    level = tcb_level(status="ConfigurationNeeded")
    assert judge(collateral=tdx(level), policy=accepting).broken == {}
    modules = [module_identity("TDX_01", isv_level(6), isv_level(5, "OutOfDate"))]
    found = judge(collateral=tdx(level, modules=modules), policy=accepting)
    assert found.judgement.status == "OutOfDateConfigurationNeeded"
    assert found.broken == {"tcb_status": refused("tcb_status", "OutOfDateConfigurationNeeded")}


# ------------------------------------------------------------------------------- grace

NEW = "2026-05-20T00:00:00Z"
OUT_OF_DATE = tcb_level(status="OutOfDate", dated="2025-05-14T00:00:00Z")


@pytest.mark.parametrize(("days", "holds"), [(12, True), (11, False)])
def test_grace_runs_from_the_newer_level(days: int, holds: bool) -> None:
    """Intel's newer level is twelve days old."""
    collateral = tdx(tcb_level(pcesvn=14, dated=NEW), OUT_OF_DATE)
    assert "platform_tcb" in judge(collateral=collateral).broken
    found = judge(collateral=collateral, policy=policy(tcb_grace_s=days * DAY))
    assert found.value("platform_tcb") == "OutOfDate"
    assert found.judgement.status == "OutOfDate"
    assert (found.broken == {}) is holds


def test_grace_from_the_end_of_time() -> None:
    """Dates of collateral that nobody signed are compared all the same."""
    collateral = tdx(tcb_level(pcesvn=14, dated="9999-12-31T23:59:59Z"), OUT_OF_DATE)
    assert "platform_tcb" in judge(collateral=collateral).broken
    assert judge(collateral=collateral, policy=policy(tcb_grace_s=DAY)).broken == {}


def test_grace_runs_from_the_first_newer_level() -> None:
    first = tcb_level(status="OutOfDate", pcesvn=14, dated="2026-01-01T00:00:00Z")
    newest = tcb_level(pcesvn=15, dated=NEW)
    generous = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=tdx(newest, OUT_OF_DATE), policy=generous).broken == {}
    assert (
        "platform_tcb" in judge(collateral=tdx(newest, first, OUT_OF_DATE), policy=generous).broken
    )


def test_levels_of_the_same_date_are_not_newer() -> None:
    same = tcb_level(pcesvn=14, dated="2025-05-14T00:00:00Z")
    newest = tcb_level(pcesvn=15, dated=NEW)
    generous = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=tdx(newest, same, OUT_OF_DATE), policy=generous).broken == {}
    assert "platform_tcb" in judge(collateral=tdx(same, OUT_OF_DATE), policy=generous).broken


def test_no_grace_without_a_newer_level() -> None:
    generous = policy(tcb_grace_s=10 * 365 * DAY)
    newer = tcb_level(pcesvn=14, dated=NEW)
    assert judge(collateral=tdx(newer, OUT_OF_DATE), policy=generous).broken == {}
    assert "platform_tcb" in judge(collateral=tdx(OUT_OF_DATE, newer), policy=generous).broken


def test_grace_is_for_out_of_date_alone() -> None:
    generous = policy(tcb_grace_s=30 * DAY)
    newer = tcb_level(pcesvn=14, dated=NEW)
    assert judge(collateral=tdx(newer, OUT_OF_DATE), policy=generous).broken == {}
    for status in ("OutOfDateConfigurationNeeded", "SWHardeningNeeded", "Revoked"):
        level = tcb_level(status=status, dated="2025-05-14T00:00:00Z")
        assert "platform_tcb" in judge(collateral=tdx(newer, level), policy=generous).broken


def test_grace_for_the_module_and_the_quoting_enclave() -> None:
    generous = policy(tcb_grace_s=30 * DAY)
    old = isv_level(1, "OutOfDate")
    modules = [module_identity("TDX_01", isv_level(6, dated=NEW), old)]
    identity = INTEL.qe_identity(levels=[isv_level(7, dated=NEW), old])
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(modules=modules), qe_identity=identity)
    found = judge(collateral=collateral, policy=generous)
    assert found.broken == {}
    assert found.judgement.status == found.value("tcb_status") == "OutOfDate"
    assert judge(collateral=collateral).broken.keys() == {
        "qe_tcb",
        "tdx_module_tcb",
        "tcb_status",
    }


def test_grace_does_not_hide_what_else_is_needed() -> None:
    modules = [module_identity("TDX_01", isv_level(6, dated=NEW), isv_level(1, "OutOfDate"))]
    collateral = tdx(tcb_level(status="ConfigurationNeeded"), modules=modules)
    generous = policy(tcb_grace_s=30 * DAY, tcb_statuses=("UpToDate", "ConfigurationNeeded"))
    found = judge(collateral=collateral, policy=generous)
    assert found.broken == {}
    assert found.value("tcb_status") == "OutOfDateConfigurationNeeded"
    less = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=collateral, policy=less).broken == {
        "platform_tcb": refused("tcb_status", "ConfigurationNeeded"),
        "tcb_status": refused("tcb_status", "OutOfDateConfigurationNeeded"),
    }


# -------------------------------------------------------------------------- advisories

ONE, TWO = "INTEL-SA-00615", "INTEL-SA-00837"


def test_open_advisories_must_be_accepted_by_name() -> None:
    level = tcb_level(SGX, "SWHardeningNeeded", advisories=[TWO, ONE])
    state = ("UpToDate", "SWHardeningNeeded")
    both = policy(tcb_statuses=state, tcb_accepted_advisories=(ONE, TWO))
    found = judge("sgx", collateral=sgx(level), policy=both)
    assert found.broken == {}
    assert found.value("tcb_advisories") == f"{ONE},{TWO}"
    assert found.judgement.advisory_ids == (ONE, TWO)
    for accepted in ((), (ONE,)):
        some = policy(tcb_statuses=state, tcb_accepted_advisories=accepted)
        broken = judge("sgx", collateral=sgx(level), policy=some).broken
        assert broken == {"tcb_advisories": refused("advisory_open", f"{ONE},{TWO}")}
    unchecked = policy(tcb_statuses=state, tcb_accepted_advisories=UNCHECKED)
    assert judge("sgx", collateral=sgx(level), policy=unchecked).broken == {}


def test_advisories_of_a_level_that_is_up_to_date_are_dealt_with() -> None:
    level = tcb_level(SGX, advisories=[ONE])
    assert judge("sgx", collateral=sgx(level)).broken == {}


def test_denied_advisories_are_refused_in_any_state() -> None:
    for status in ("UpToDate", "SWHardeningNeeded"):
        collateral = sgx(tcb_level(SGX, status, advisories=[ONE, TWO]))
        assert judge("sgx", collateral=collateral, policy=GENEROUS).broken == {}
        denying = dataclasses.replace(GENEROUS, tcb_denied_advisories=(TWO,))
        assert judge("sgx", collateral=collateral, policy=denying).broken == {
            "tcb_advisories": refused("advisory_denied", f"{ONE},{TWO}")
        }
        unchecked = dataclasses.replace(GENEROUS, tcb_denied_advisories=UNCHECKED)
        assert judge("sgx", collateral=collateral, policy=unchecked).broken == {}


def test_advisories_of_the_module_and_the_quoting_enclave_count() -> None:
    modules = [module_identity("TDX_01", isv_level(5, "OutOfDate", advisories=[ONE]))]
    identity = INTEL.qe_identity(levels=[isv_level(1, "OutOfDate", advisories=[TWO])])
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(modules=modules), qe_identity=identity)
    found = judge(collateral=collateral, policy=GENEROUS)
    assert found.broken == {}
    assert found.value("tcb_advisories") == f"{ONE},{TWO}"
    collateral_facts = found.judgement.facts["collateral"]
    assert isinstance(collateral_facts, dict)
    assert collateral_facts["advisory_ids"] == []
    for name in (ONE, TWO):
        denying = dataclasses.replace(GENEROUS, tcb_denied_advisories=(name,))
        assert "tcb_advisories" in judge(collateral=collateral, policy=denying).broken
    some = dataclasses.replace(GENEROUS, tcb_accepted_advisories=(ONE,))
    assert "tcb_advisories" in judge(collateral=collateral, policy=some).broken


def test_grace_accepts_no_advisory() -> None:
    newer = tcb_level(pcesvn=14, dated=NEW)
    old = tcb_level(status="OutOfDate", dated="2025-05-14T00:00:00Z", advisories=[ONE])
    collateral = tdx(newer, old)
    accepting = policy(tcb_grace_s=30 * DAY, tcb_accepted_advisories=(ONE,))
    assert judge(collateral=collateral, policy=accepting).broken == {}
    assert judge(collateral=collateral, policy=policy(tcb_grace_s=30 * DAY)).broken == {
        "tcb_advisories": refused("advisory_open", ONE)
    }


# ------------------------------------------------------------- age and evaluation number


@pytest.mark.parametrize(("minimum", "holds"), [(UNCHECKED, True), (19, True), (20, False)])
def test_the_evaluation_number(minimum: Any, holds: bool) -> None:
    found = judge(policy=policy(tcb_minimum_evaluation_number=minimum))
    assert found.broken == (
        {} if holds else {"tcb_evaluation_number": refused("tcb_evaluation_number", "19")}
    )


def test_both_documents_must_have_the_number_and_differing_ones_are_told() -> None:
    older: list[tuple[Collateral, str]] = [
        (INTEL.collateral(qe_identity=INTEL.qe_identity(evaluation_number=18)), "19/18"),
        (INTEL.collateral(tcb_info=INTEL.tcb_info(evaluation_number=18)), "18/19"),
    ]
    for collateral, numbers in older:
        found = judge(collateral=collateral)
        assert found.broken == {}
        assert found.value("tcb_evaluation_number") == numbers
        (sentence,) = found.judgement.not_proven
        assert numbers in sentence
        asking = policy(tcb_minimum_evaluation_number=19)
        assert judge(policy=asking).broken == {}
        assert judge(collateral=collateral, policy=asking).broken == {
            "tcb_evaluation_number": refused("tcb_evaluation_number", numbers)
        }


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_crl"])
def test_no_part_may_be_older_than_the_policy_allows(part: str) -> None:
    """Except for the root's list, which is renewed once a year."""
    issued, until = NOW - timedelta(days=8), NOW + timedelta(days=22)
    ca, key = INTEL.cas["platform"], INTEL.ca_keys["platform"]
    collateral = {
        "tcb_info": lambda: INTEL.collateral(tcb_info=INTEL.tcb_info(issued=issued)),
        "qe_identity": lambda: INTEL.collateral(qe_identity=INTEL.qe_identity(issued=issued)),
        "pck_crl": lambda: INTEL.collateral(pck_crl=INTEL.crl(ca, key, issued=issued, until=until)),
        "root_crl": lambda: INTEL.collateral(
            root_crl=INTEL.crl(INTEL.root, INTEL.root_key, issued=issued, until=until)
        ),
    }[part]()
    assert judge(collateral=collateral).broken == {}
    assert judge(collateral=collateral, policy=policy(max_collateral_age_s=8 * DAY)).broken == {}
    short = judge(collateral=collateral, policy=policy(max_collateral_age_s=7 * DAY))
    assert short.broken == (
        {} if part == "root_crl" else {"collateral_age": refused("collateral_too_old")}
    )
