"""What is read from a recorded SEV-SNP case."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from cloister.cli.cases.folder import CaseFile, CaseFiles
from cloister.cli.cases.snp import LAYERS, VERIFY, read
from cloister.errors import ConfigurationError
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.verifier.evidence import run
from cloister.verifier.expected import Expected
from cloister.verifier.policy import SNP_PRODUCTS, as_captured, development
from cloister.verifier.result import Finding

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AMD = SimulatedAmd(now=NOW)
EVIDENCE = AMD.evidence(report_data=b"hello", crls=[AMD.crl()])


def file(role: str, data: bytes) -> CaseFile:
    return CaseFile(role=role, name=role, encoding="binary", data=data)


def case(**inputs: object) -> CaseFiles:
    return CaseFiles(
        name="snp/made-up",
        platform="snp",
        variant=None,
        files=(
            file("report", EVIDENCE.report),
            file("leaf_cert", EVIDENCE.certificates[0]),
            file("original_bundle", b"the same once more"),
            file("crl", EVIDENCE.crls[0]),
        ),
        inputs=inputs,
        certificates=(),
        at=NOW,
    )


def test_evidence_of_a_case() -> None:
    made = read(case())
    expected = dataclasses.replace(EVIDENCE, certificates=EVIDENCE.certificates[:1])
    assert made.evidence == expected
    assert made.expected == Expected()
    policy = as_captured(development())
    assert made.narrow(policy) is policy
    found = run(VERIFY, made.evidence, policy=policy, roots=AMD.roots, at=NOW)
    assert found.verdict is Finding.AFFIRMING
    assert set(LAYERS.values()) >= {"parse", "signature", "chain", "time", "debug", "expectation"}


def test_expectations() -> None:
    made = read(
        case(
            expected_measurement="4d" * 48,
            expected_host_data="00" * 32,
            expected_report_data_prefix_ascii="hel",
        )
    )
    assert made.expected == Expected(
        values={"measurement": b"\x4d" * 48, "host_data": bytes(32)},
        prefixes={"report_data": b"hel"},
    )


@pytest.mark.parametrize("prefix", [5, ["hel"], "hél"])
def test_a_beginning_that_is_none(prefix: object) -> None:
    assert read(case(expected_report_data_prefix_ascii="hel")).expected.prefixes
    with pytest.raises(ConfigurationError) as raised:
        read(case(expected_report_data_prefix_ascii=prefix))
    assert raised.value.code == "case.malformed"


def test_a_minimum_holds_for_every_product() -> None:
    narrow = read(case(minimum_reported_tcb={"snp": 24})).narrow
    policy = narrow(development())
    assert policy.snp_minimum_tcb == {product: {"snp": 24} for product in SNP_PRODUCTS}


def test_a_minimum_never_widens_the_policy() -> None:
    before = dataclasses.replace(
        development(), snp_minimum_tcb={"milan": {"snp": 25, "microcode": 1}}
    )
    policy = read(case(minimum_reported_tcb={"snp": 24, "tee": 1})).narrow(before)
    assert policy.snp_minimum_tcb == {"milan": {"snp": 25, "microcode": 1, "tee": 1}}


def test_a_minimum_that_is_none() -> None:
    with pytest.raises(ConfigurationError):
        read(case(minimum_reported_tcb=24))
    with pytest.raises(ConfigurationError):
        read(case(minimum_reported_tcb={"snp": "24"}))


def test_no_report() -> None:
    bare = dataclasses.replace(case(), files=())
    with pytest.raises(ConfigurationError):
        read(bare)
