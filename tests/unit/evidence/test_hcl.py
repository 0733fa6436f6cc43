"""Reports of Azure's paravisor."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.errors import MalformedError
from cloister.evidence.hcl import (
    MAX_REPORT_BYTES,
    HardwareType,
    RuntimeHash,
    parse_hcl_report,
    parse_runtime_data,
    quoted_td_report,
    td_report_data,
)
from cloister.testing.simulated_azure import SimulatedAzure, encode_hcl_report

MACHINE = SimulatedAzure.make(now=datetime(2026, 6, 1, tzinfo=UTC))
RUNTIME = MACHINE.runtime_data(user_data=b"\xab" * 64)
REPORT = MACHINE.hcl_report(runtime_data=RUNTIME)
USED = 32 + 1184 + 20 + len(RUNTIME)


def changed(offset: int, value: int) -> bytes:
    data = bytearray(REPORT)
    data[offset] = value
    return bytes(data)


def test_a_report_over_snp() -> None:
    assert len(REPORT) == 2600
    report = parse_hcl_report(REPORT)
    assert report.version == 2
    assert report.hardware_type is HardwareType.SNP
    assert report.hardware_report == REPORT[32:1216]
    assert report.hash is RuntimeHash.SHA256
    assert report.runtime_bytes == RUNTIME
    numbers = MACHINE.vtpm.key.public_key().public_numbers()
    assert report.runtime.attestation_key.modulus == numbers.n  # type: ignore[union-attr]
    assert report.runtime.attestation_key.exponent == 65537
    assert report.runtime.endorsement_key is not None
    assert report.runtime.vm_configuration["secure-boot"] is True
    assert report.runtime.user_data == "AB" * 64
    assert parse_hcl_report(MACHINE.hcl_report(version=1)).version == 1
    assert parse_hcl_report(REPORT[:USED]) == report


def test_a_report_over_tdx() -> None:
    td_report = b"\x81" + bytes(range(256)) * 3 + bytes(255)
    report = parse_hcl_report(encode_hcl_report(td_report, RUNTIME))
    assert report.hardware_type is HardwareType.TDX
    assert report.hardware_report == td_report
    assert td_report_data(td_report) == td_report[128:192]
    quoted = quoted_td_report(td_report)
    assert len(quoted) == 584
    assert quoted == td_report[264:384] + td_report[512:912] + td_report[128:192]


@pytest.mark.parametrize(
    "data",
    [
        changed(0, 0),
        changed(4, 0),
        changed(4, 3),
        changed(8, REPORT[8] ^ 1),  # size
        changed(12, 1),  # request type
        changed(16, 1),  # status
        changed(20, 1),
        changed(31, 1),
        changed(1216, REPORT[1216] ^ 1),
        changed(1220, 2),
        changed(1224, 3),  # type of the report
        changed(1228, 0),  # hash
        changed(1228, 4),
        changed(1232, REPORT[1232] ^ 1),
        changed(USED, 1),
        changed(2599, 1),
        REPORT[: USED - 1],
        b"",
        REPORT.ljust(MAX_REPORT_BYTES + 1, b"\0"),
        encode_hcl_report(bytes(1024), RUNTIME),  # no TDREPORT
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_hcl_report(data)
    assert caught.value.code == "malformed"


def test_something_behind_a_td_report_is_refused() -> None:
    report = encode_hcl_report(b"\x81" + bytes(1023), RUNTIME)
    parse_hcl_report(report)
    assert report[32 + 1024] == 0
    with pytest.raises(MalformedError):
        parse_hcl_report(report[: 32 + 1024] + b"\1" + report[32 + 1025 :])


def test_another_hash() -> None:
    report = encode_hcl_report(bytes(1184), RUNTIME, hash_algorithm=RuntimeHash.SHA512)
    assert parse_hcl_report(report).hash is RuntimeHash.SHA512


def twice(members: dict[str, Any]) -> None:
    members["keys"].append(members["keys"][0])


def without_key(members: dict[str, Any]) -> None:
    members["keys"] = members["keys"][1:]


def of(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(members: Any) -> None:
        for step in path[:-1]:
            members = members[step]
        members[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        twice,
        without_key,
        of("keys", value={}),
        of("keys", value=[]),
        of("keys", 0, value="HCLAkPub"),
        of("keys", 0, "kty", value="EC"),
        of("keys", 0, "e", value="AQAB=="),
        of("keys", 0, "e", value=""),
        of("keys", 0, "e", value="A"),
        of("keys", 0, "e", value="AQB"),  # bits beyond the last byte
        of("keys", 0, "e", value="AQ+B"),
        of("keys", 0, "n", value=5),
        of("keys", 1, "n", value="!"),
        of("user-data", value="xyz"),
        of("user-data", value="00" * 65),
        of("user-data", value=None),
        of("vm-configuration", value=[]),
    ],
)
def test_runtime_data_are_read_strictly(change: Callable[[dict[str, Any]], None]) -> None:
    members = json.loads(RUNTIME)
    parse_runtime_data(json.dumps(members).encode())
    change(members)
    with pytest.raises(MalformedError) as caught:
        parse_runtime_data(json.dumps(members).encode())
    assert caught.value.code == "malformed"


def test_members_that_are_not_known_are_left_alone() -> None:
    members = json.loads(RUNTIME) | {"more": {}}
    assert parse_runtime_data(json.dumps(members).encode()) == parse_runtime_data(RUNTIME)


def test_a_member_named_twice_is_refused() -> None:
    with pytest.raises(MalformedError):
        parse_runtime_data(RUNTIME.replace(b'{"keys"', b'{"user-data":"00","keys"', 1))


def test_the_endorsement_key_may_be_missing() -> None:
    members = json.loads(RUNTIME)
    members["keys"] = members["keys"][:1]
    assert parse_runtime_data(json.dumps(members).encode()).endorsement_key is None
