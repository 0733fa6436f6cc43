"""Intel's signed documents: what decodes, and what would leave room for doubt."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.endorsements.intel import parse_qe_identity, parse_tcb_info
from cloister.endorsements.intel_tcb_info import MAX_ADVISORIES, MAX_LEVELS, MAX_MODULES
from cloister.errors import MalformedError
from cloister.testing.simulated_dcap import (
    SGX,
    TDX,
    SimulatedIntel,
    document,
    isv_level,
    module_identity,
    tcb_level,
)

INTEL = SimulatedIntel(now=datetime(2026, 6, 1, tzinfo=UTC))
INFO: dict[str, Any] = dict(
    INTEL.tcb_info(
        levels=[tcb_level(), tcb_level(status="OutOfDate", advisories=["INTEL-SA-00837"])]
    )
)
IDENTITY: dict[str, Any] = dict(INTEL.qe_identity())
SVNS = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]


def test_tcb_info() -> None:
    found = parse_tcb_info(document(INFO))
    assert (found.id, found.version, found.fmspc.hex(), found.pceid) == (
        "TDX",
        3,
        "90c06f000000",
        bytes(2),
    )
    assert found.issue_date == datetime(2026, 5, 31, tzinfo=UTC)
    assert found.next_update == datetime(2026, 6, 30, tzinfo=UTC)
    assert found.tcb_evaluation_data_number == 19
    first, second = found.levels
    assert [component.svn for component in first.sgx_components] == SVNS
    assert first.sgx_components[0].category == "BIOS"
    assert first.sgx_components[0].type == "Early Microcode Update"
    assert first.sgx_components[3].category is None
    assert first.tdx_components is not None
    assert [component.svn for component in first.tdx_components[:3]] == [5, 0, 3]
    assert first.pcesvn == 13
    assert first.tcb_date == datetime(2025, 5, 14, tzinfo=UTC)
    assert (first.status, first.advisory_ids) == ("UpToDate", ())
    assert (second.status, second.advisory_ids) == ("OutOfDate", ("INTEL-SA-00837",))
    assert found.tdx_module is not None
    assert found.tdx_module.mrsigner == bytes(48)
    assert found.tdx_module.attributes_mask == b"\xff" * 8


def test_modules_are_found_by_version() -> None:
    modules = [module_identity("TDX_0a", isv_level(2)), module_identity("TDX_03", isv_level(3))]
    found = parse_tcb_info(document(INTEL.tcb_info(modules=modules)))
    third, tenth = found.tdx_module_identity(3), found.tdx_module_identity(10)
    assert third is not None
    assert tenth is not None
    assert (third.levels[0].isvsvn, tenth.levels[0].isvsvn) == (3, 2)
    assert found.tdx_module_identity(1) is None


def test_tcb_info_for_sgx_has_no_tdx() -> None:
    found = parse_tcb_info(document(INTEL.tcb_info(SGX)))
    assert (found.id, found.tdx_module, found.tdx_module_identities) == ("SGX", None, ())
    assert found.levels[0].tdx_components is None


def test_version_2() -> None:
    info: dict[str, Any] = dict(INTEL.tcb_info(SGX)) | {"version": 2}
    del info["id"]
    level = info["tcbLevels"][0]
    level["tcb"] = {f"sgxtcbcomp{number:02d}svn": svn for number, svn in enumerate(SVNS, 1)}
    level["tcb"]["pcesvn"] = 13
    found = parse_tcb_info(document(info))
    assert (found.id, found.version) == ("SGX", 2)
    assert [component.svn for component in found.levels[0].sgx_components] == SVNS
    del level["tcb"]["sgxtcbcomp16svn"]
    with pytest.raises(MalformedError):
        parse_tcb_info(document(info))


def test_modules_may_be_absent() -> None:
    info = {name: value for name, value in INFO.items() if name != "tdxModuleIdentities"}
    assert parse_tcb_info(document(info)).tdx_module_identities == ()


def test_members_that_intel_adds_are_passed_over() -> None:
    assert parse_tcb_info(document(INFO | {"later": {"much": 1}})).levels
    assert parse_qe_identity(document(IDENTITY | {"later": "much"})).levels


def test_a_status_that_is_not_known_is_kept() -> None:
    info = INTEL.tcb_info(levels=[tcb_level(status="TDRelaunchAdvised")])
    assert parse_tcb_info(document(info)).levels[0].status == "TDRelaunchAdvised"


def set_in(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set the member at a path of names and indices; ``DELETE`` removes it."""

    def change(members: dict[str, Any]) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        place: Any = members
        for part in parents:
            place = place[part]
        if value == "DELETE":
            del place[last]
        else:
            place[last] = value

    return change


LEVEL = INFO["tcbLevels"][0]
COMPONENTS = LEVEL["tcb"]["sgxtcbcomponents"]
CHANGES = [
    ("id", "DELETE"),
    ("id", "QE"),
    ("id", ["TDX"]),
    ("version", "DELETE"),
    ("version", 1),
    ("version", 4),
    ("version", True),
    ("tcbType", 1),
    ("tcbType", "DELETE"),
    ("issueDate", "DELETE"),
    ("issueDate", "2026-05-31"),
    ("issueDate", "2026-05-31T00:00:00"),
    ("issueDate", "2026-05-31T00:00:00+00:00"),
    ("issueDate", "2026-05-31T00:00:00.5Z"),
    ("issueDate", "2026-02-30T00:00:00Z"),
    ("issueDate", "２026-05-31T00:00:00Z"),
    ("issueDate", 1780000000),
    ("nextUpdate", "DELETE"),
    ("fmspc", "90c06f0000"),
    ("fmspc", "90c06f000000 "),
    ("fmspc", "90c06f00000g"),
    ("fmspc", "DELETE"),
    ("pceId", "00"),
    ("pceId", "DELETE"),
    ("tcbEvaluationDataNumber", "DELETE"),
    ("tcbEvaluationDataNumber", -1),
    ("tcbEvaluationDataNumber", "19"),
    ("tdxModule", "DELETE"),
    ("tdxModule.mrsigner", "00" * 47),
    ("tdxModule.attributes", "00" * 9),
    ("tdxModule.attributesMask", "DELETE"),
    ("tdxModuleIdentities", {}),
    ("tdxModuleIdentities", [module_identity("TDX_01"), module_identity("TDX_01")]),
    ("tdxModuleIdentities", [module_identity("TDX_0a"), module_identity("TDX_0A")]),
    (
        "tdxModuleIdentities",
        [module_identity(f"TDX_{number:02X}") for number in range(MAX_MODULES + 1)],
    ),
    ("tdxModuleIdentities.0.id", 1),
    ("tdxModuleIdentities.0.tcbLevels", "DELETE"),
    ("tdxModuleIdentities.0.tcbLevels.0.tcb.isvsvn", 65536),
    ("tcbLevels", "DELETE"),
    ("tcbLevels", [LEVEL] * (MAX_LEVELS + 1)),
    ("tcbLevels.0", []),
    ("tcbLevels.0.tcb", "DELETE"),
    ("tcbLevels.0.tcb.pcesvn", "DELETE"),
    ("tcbLevels.0.tcb.pcesvn", 65536),
    ("tcbLevels.0.tcb.sgxtcbcomponents", COMPONENTS[:15]),
    ("tcbLevels.0.tcb.sgxtcbcomponents", [*COMPONENTS, {"svn": 0}]),
    ("tcbLevels.0.tcb.sgxtcbcomponents.0.svn", 256),
    ("tcbLevels.0.tcb.sgxtcbcomponents.0.svn", -1),
    ("tcbLevels.0.tcb.sgxtcbcomponents.0.svn", "DELETE"),
    ("tcbLevels.0.tcb.sgxtcbcomponents.0.type", 5),
    ("tcbLevels.0.tcb.tdxtcbcomponents", "DELETE"),
    ("tcbLevels.0.tcb.tdxtcbcomponents", COMPONENTS[:15]),
    ("tcbLevels.0.tcbDate", "DELETE"),
    ("tcbLevels.0.tcbStatus", "DELETE"),
    ("tcbLevels.0.tcbStatus", "Up To Date"),
    ("tcbLevels.0.advisoryIDs", "INTEL-SA-00837"),
    ("tcbLevels.0.advisoryIDs", ["intel"]),
    ("tcbLevels.0.advisoryIDs", ["INTEL-SA-00837"] * (MAX_ADVISORIES + 1)),
]


@pytest.mark.parametrize(("path", "value"), CHANGES, ids=range(len(CHANGES)))
def test_strict_tcb_info(path: str, value: object) -> None:
    changed = copy.deepcopy(INFO)
    parse_tcb_info(document(changed))
    set_in(path, value)(changed)
    with pytest.raises(MalformedError):
        parse_tcb_info(document(changed))


IDENTITY_CHANGES = [
    ("id", "QVE"),
    ("id", "DELETE"),
    ("version", 1),
    ("version", 3),
    ("issueDate", "DELETE"),
    ("nextUpdate", "DELETE"),
    ("tcbEvaluationDataNumber", "DELETE"),
    ("miscselect", "0000"),
    ("miscselectMask", "DELETE"),
    ("attributes", "11" * 15),
    ("attributesMask", "DELETE"),
    ("mrsigner", "DELETE"),
    ("mrsigner", "00" * 31),
    ("isvprodid", 65536),
    ("isvprodid", "DELETE"),
    ("tcbLevels", "DELETE"),
    ("tcbLevels", [isv_level(1)] * (MAX_LEVELS + 1)),
    ("tcbLevels.0.tcb.isvsvn", "DELETE"),
]


@pytest.mark.parametrize(("path", "value"), IDENTITY_CHANGES, ids=range(len(IDENTITY_CHANGES)))
def test_strict_identity(path: str, value: object) -> None:
    changed = copy.deepcopy(IDENTITY)
    found = parse_qe_identity(document(changed))
    assert (found.id, found.isvprodid, found.levels[0].isvsvn) == ("TD_QE", 2, 4)
    set_in(path, value)(changed)
    with pytest.raises(MalformedError):
        parse_qe_identity(document(changed))


@pytest.mark.parametrize(
    ("parse", "members"), [(parse_tcb_info, INFO), (parse_qe_identity, IDENTITY)]
)
def test_no_member_twice(parse: Callable[[bytes], object], members: dict[str, Any]) -> None:
    text = document(members)
    parse(text)
    twice = text[:-1] + b',"tcbEvaluationDataNumber":99}'
    json.loads(twice)
    with pytest.raises(MalformedError, match="twice"):
        parse(twice)


@pytest.mark.parametrize("tee", [SGX, TDX])
def test_hexadecimal_of_either_case(tee: str) -> None:
    info = INTEL.tcb_info(tee, fmspc=bytes.fromhex("b0c06fabcdef"))
    for text in ("b0c06fabcdef", "B0C06FABCDEF"):
        assert parse_tcb_info(document({**info, "fmspc": text})).fmspc.hex() == "b0c06fabcdef"
