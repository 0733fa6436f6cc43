"""Results about hardware platforms as EAR claims-sets: one submodule a device."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy
from cloister.verifier.ear import to_ear
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Claim, Finding, Source

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))


def result_of(
    worker: SimulatedHardware, *, nonce: bytes = NONCE, values: ReferenceValues | None = None
) -> AttestationResult:
    return verify_report(
        worker.report(NONCE),
        nonce=nonce,
        policy=policy.development(),
        reference_values=worker.reference_values if values is None else values,
        roots=worker.roots,
        at=NOW,
    )


def submodules(result: AttestationResult) -> dict[str, Any]:
    ear = json.loads(json.dumps(to_ear(result, build="cloister 0.1.0")))
    found = ear["submods"]
    assert isinstance(found, dict)
    return found


def vector(result: AttestationResult) -> dict[str, int]:
    found = submodules(result)["cpu0"]["ear.trustworthiness-vector"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("platform", ["snp", "tdx", "sgx", "nitro"])
def test_an_affirmed_worker(platform: str) -> None:
    worker = SimulatedHardware.make(platform, now=NOW)
    result = result_of(worker)
    cpu = submodules(result)["cpu0"]
    assert cpu["ear.status"] == "affirming"
    assert cpu["cloister.development"] is True
    found = vector(result)
    assert found["instance-identity"] == 2
    assert found["configuration"] == 2
    assert found["executables"] == 3
    assert "runtime-opaque" not in found  # a simulated platform encrypts nothing


def test_encrypted_memory_is_claimed_only_of_genuine_platforms() -> None:
    result = result_of(SimulatedHardware.make("tdx", now=NOW))
    genuine = dataclasses.replace(result, development=False, memory_confidentiality="tdx")
    assert vector(genuine)["runtime-opaque"] == 2
    assert "runtime-opaque" not in vector(
        dataclasses.replace(genuine, memory_confidentiality="nitro")
    )


def test_a_platform_out_of_date_is_hardware() -> None:
    worker = SimulatedHardware.make("tdx", now=NOW)
    assert vector(result_of(worker))["hardware"] == 2
    old = SimulatedHardware.make("tdx", now=NOW, worker=worker.worker, tee_tcb_svn=bytes(16))
    result = result_of(old)
    assert vector(result)["hardware"] == 96
    assert vector(result)["instance-identity"] == 2


def test_other_software_is_executables() -> None:
    worker = SimulatedHardware.make("snp", now=NOW)
    other = SimulatedHardware.make("snp", now=NOW, measurement=bytes(48))
    found = vector(result_of(other, values=worker.reference_values))
    assert found["executables"] == 96
    assert found["instance-identity"] == 2


def test_a_replayed_report_is_not_this_instance() -> None:
    worker = SimulatedHardware.make("snp", now=NOW)
    assert vector(result_of(worker, nonce=bytes(32)))["instance-identity"] == 99


def test_each_device_answers_for_itself_and_no_more() -> None:
    result = result_of(SimulatedHardware.make("snp", now=NOW))
    bad = Claim(
        name="nvgpu.signature",
        finding=Finding.CONTRAINDICATED,
        source=Source.HARDWARE_PROVEN,
        explanation="Forged.",
        code="bad_signature",
        device="gpu0",
        value="fail",
    )
    both = dataclasses.replace(result, claims=(*result.claims, bad), attester=None)
    found = submodules(both)
    assert found["gpu0"]["ear.status"] == "contraindicated"
    assert found["gpu0"]["ear.trustworthiness-vector"] == {
        "instance-identity": 99,
        "executables": 99,
    }
    assert found["cpu0"]["ear.status"] == "affirming"
    assert both.verdict is Finding.CONTRAINDICATED
