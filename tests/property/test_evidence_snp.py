"""SEV-SNP parsers take any bytes and know one error; no altered report is ever affirmed."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cloister.endorsements.amd import parse_endorsement_key
from cloister.endorsements.certificates import parse_certificate, parse_certificates, parse_crl
from cloister.errors import MalformedError
from cloister.evidence.snp import (
    REPORT_BYTES,
    CertificateKind,
    parse_certificate_table,
    parse_report,
)
from cloister.testing.simulated_snp import SimulatedAmd, certificate_table
from cloister.verifier.evidence import run
from cloister.verifier.platforms.snp import SnpEvidence, verify_snp
from cloister.verifier.policy import as_captured, development
from cloister.verifier.result import Finding

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AMD = SimulatedAmd(now=NOW)
KEY = AMD.key()
EVIDENCE = AMD.evidence(KEY, version=5)
TABLE = certificate_table(
    {CertificateKind.VCEK: b"v" * 40, CertificateKind.ASK: b"a" * 30}, pad_to=256
)
POLICY = as_captured(development())


def finding(evidence: SnpEvidence) -> Finding:
    return run(verify_snp, evidence, policy=POLICY, roots=AMD.roots, at=NOW).verdict


def altered(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_the_examples_are_good() -> None:
    assert finding(EVIDENCE) is Finding.AFFIRMING
    assert len(parse_certificate_table(TABLE)) == 2


@given(data=st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES) | st.binary(max_size=64))
def test_any_bytes_as_a_report(data: bytes) -> None:
    for any_version in (False, True):
        with contextlib.suppress(MalformedError):
            assert parse_report(data, any_version=any_version).raw == data


@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_table(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse_certificate_table(data)


@given(at=st.integers(0, len(TABLE) - 1), bit=st.integers(0, 7))
def test_a_table_with_one_bit_altered(at: int, bit: int) -> None:
    with contextlib.suppress(MalformedError):
        for entry in parse_certificate_table(altered(TABLE, at, bit)):
            assert len(entry.data) <= len(TABLE)


@given(data=st.binary(max_size=300))
def test_any_bytes_as_certificates_and_lists(data: bytes) -> None:
    for parse in (parse_certificate, parse_certificates, parse_crl):
        with contextlib.suppress(MalformedError):
            parse(data)
            parse(b"-----BEGIN CERTIFICATE-----\n" + data)


@given(at=st.integers(0, len(KEY.certificate) - 1), bit=st.integers(0, 7))
def test_a_leaf_with_one_bit_altered(at: int, bit: int) -> None:
    data = altered(KEY.certificate, at, bit)
    with contextlib.suppress(MalformedError):
        parse_endorsement_key(parse_certificate(data))
    certificates = (data, *EVIDENCE.certificates[1:])
    evidence = dataclasses.replace(EVIDENCE, certificates=certificates)
    assert finding(evidence) is not Finding.AFFIRMING


@given(at=st.integers(0, REPORT_BYTES - 1), bit=st.integers(0, 7))
def test_a_report_with_one_bit_altered(at: int, bit: int) -> None:
    report = altered(EVIDENCE.report, at, bit)
    assert finding(dataclasses.replace(EVIDENCE, report=report)) is not Finding.AFFIRMING


@given(
    report=st.binary(max_size=32) | st.just(EVIDENCE.report),
    certificates=st.lists(st.binary(max_size=32), max_size=4),
    crls=st.lists(st.binary(max_size=32), max_size=4),
)
def test_any_evidence_has_a_verdict(
    report: bytes, certificates: list[bytes], crls: list[bytes]
) -> None:
    evidence = SnpEvidence(report=report, certificates=tuple(certificates), crls=tuple(crls))
    assert finding(evidence) is not Finding.AFFIRMING
