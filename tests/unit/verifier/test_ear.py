"""Results as EAR claims-sets."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.evidence.component import ComponentKind
from cloister.evidence.report import ITEM_SIGNATURE
from cloister.testing.simulated_tpm import (
    SimulatedAttester,
    default_components,
    default_configuration,
    made_up,
)
from cloister.verifier import policy
from cloister.verifier.ear import to_ear
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult

NOW = datetime(2026, 11, 3, 12, 0, 0, 500_000, tzinfo=UTC)
NONCE = bytes(range(32))


def appraise(
    attester: SimulatedAttester,
    *,
    report: bytes | None = None,
    values: ReferenceValues | None = None,
    under: AppraisalPolicy | None = None,
) -> AttestationResult:
    return verify_report(
        attester.report(NONCE) if report is None else report,
        nonce=NONCE,
        policy=policy.development() if under is None else under,
        reference_values=attester.reference_values if values is None else values,
        roots=attester.roots,
        at=NOW,
    )


def ear_of(result: AttestationResult) -> dict[str, Any]:
    ear = json.loads(json.dumps(to_ear(result, build="cloister 0.1.0", nonce=NONCE)))
    assert isinstance(ear, dict)
    return ear


def test_an_affirming_result() -> None:
    result = appraise(SimulatedAttester.make(now=NOW))
    ear = ear_of(result)
    assert ear["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert ear["iat"] == int(NOW.timestamp())
    assert ear["ear.verifier-id"]["build"] == "cloister 0.1.0"
    assert ear["eat_nonce"] == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert list(ear["submods"]) == ["cpu0"]
    cpu = ear["submods"]["cpu0"]
    assert cpu["ear.status"] == "affirming"
    assert cpu["ear.appraisal-policy-id"] == policy.development().policy_id
    assert cpu["cloister.platform"] == "development (software TPM)"
    assert cpu["cloister.development"] is True
    assert cpu["cloister.memory-confidentiality"] == "none"
    assert cpu["cloister.not-proven"] == list(result.not_proven)
    assert [claim["name"] for claim in cpu["cloister.claims"]] == [
        claim.name for claim in result.claims
    ]


def test_no_claim_is_made_about_memory_or_hardware_of_a_development_platform() -> None:
    ear = ear_of(appraise(SimulatedAttester.make(now=NOW)))
    assert ear["submods"]["cpu0"]["ear.trustworthiness-vector"] == {
        "instance-identity": 2,
        "configuration": 2,
        "executables": 3,
    }


def vector(result: AttestationResult) -> object:
    cpu = ear_of(result)["submods"]["cpu0"]
    assert cpu["ear.status"] == "contraindicated"
    return cpu.get("ear.trustworthiness-vector")


def test_another_model_is_contraindicated() -> None:
    attester = SimulatedAttester.make(now=NOW)
    other = made_up(ComponentKind.MODEL, "demo", "other")
    bad = SimulatedAttester.make(now=NOW, components=(*default_components()[:-1], other))
    found = vector(appraise(bad, values=attester.reference_values))
    assert found == {"instance-identity": 2, "configuration": 2, "executables": 96}


def test_something_more_is_not_recognised() -> None:
    attester = SimulatedAttester.make(now=NOW)
    extra = made_up(ComponentKind.UNOWNED, "extra.py")
    bad = SimulatedAttester.make(now=NOW, components=(*default_components(), extra))
    found = vector(appraise(bad, values=attester.reference_values))
    assert found == {"instance-identity": 2, "configuration": 2, "executables": 33}


def test_an_unknown_key_is_not_recognised_and_nothing_else_is_said() -> None:
    attester = SimulatedAttester.make(now=NOW)
    other = SimulatedAttester.make(now=NOW)
    found = vector(appraise(attester, report=other.report(NONCE)))
    assert found == {"instance-identity": 97}


def test_a_wrong_signature_is_a_failed_validation() -> None:
    attester = SimulatedAttester.make(now=NOW)
    report = attester.attestation_report(NONCE)
    item = report.evidence[ITEM_SIGNATURE]
    forged = dataclasses.replace(item, data=attester.tpm.sign(b"something else"))
    report = dataclasses.replace(report, evidence={**report.evidence, ITEM_SIGNATURE: forged})
    found = vector(appraise(attester, report=report.encode()))
    assert found == {"instance-identity": 99, "executables": 99}


@pytest.mark.parametrize("report", [b"", b"{}"])
def test_where_nothing_was_decided_there_is_no_vector(report: bytes) -> None:
    assert vector(appraise(SimulatedAttester.make(now=NOW), report=report)) is None


def test_the_status_counts_claims_outside_the_vector() -> None:
    result = appraise(SimulatedAttester.make(now=NOW), under=policy.strict())
    assert vector(result) == {"instance-identity": 2, "configuration": 2, "executables": 3}


@pytest.mark.parametrize(
    ("said", "claim"),
    [
        ({"termination": "in-engine"}, "configuration.termination"),
        ({"managed": False}, "configuration.managed"),
        ({"separation": "kindly"}, "configuration.separation"),
    ],
)
def test_how_a_worker_serves_is_part_of_its_configuration(said: dict[str, Any], claim: str) -> None:
    under = dataclasses.replace(policy.development(), require_model=False)
    attester = SimulatedAttester.make(now=NOW, configuration={**default_configuration(), **said})
    result = appraise(attester, under=under)
    assert [one.name for one in result.failures][-1] == claim
    found = vector(result)
    assert isinstance(found, dict)
    assert found["configuration"] == 96
