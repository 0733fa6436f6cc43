"""Parsers of GPU evidence take any bytes, and know one error; no altered report is affirmed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.endorsements.nvidia import parse_chain
from cloister.errors import MalformedError
from cloister.evidence.nvgpu import (
    GpuDevice,
    parse_device_report,
    parse_evidence_list,
    split_pem,
)
from cloister.evidence.rim import parse_rim, parse_signed_content
from cloister.evidence.spdm import parse_measurements, parse_report
from cloister.testing.simulated_nvgpu import SimulatedNvidia, digest, rim_text
from cloister.verifier.evidence import run
from cloister.verifier.platforms.nvgpu import GpuEvidence, RimEvidence, verify_nvgpu
from cloister.verifier.policy import as_captured, development
from cloister.verifier.result import Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NVIDIA = SimulatedNvidia.make(now=NOW)
GPU = NVIDIA.device()
REPORT = GPU.report(bytes(32))
TEXT = rim_text({1: (digest("one"),)}, version="550.90.07", size=3)
RIM = NVIDIA.sign(TEXT)


def measurements(data: bytes) -> object:
    return parse_measurements(parse_report(data))


def chain(data: bytes) -> object:
    return parse_chain([data])


GOOD: dict[Callable[[bytes], object], bytes] = {
    parse_device_report: REPORT,
    measurements: REPORT,
    parse_evidence_list: b'[{"evidence": "AQID", "certificate": "", "arch": "HOPPER"}]',
    split_pem: b"-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n",
    parse_rim: RIM,
    parse_signed_content: TEXT.encode(),
    chain: GPU.chain[0],
}

PARSERS = pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)


def altered(data: bytes, changes: list[tuple[int, int]], size: int) -> bytes:
    made = bytearray(data)
    for offset, value in changes:
        made[offset % len(made)] = value
    return bytes(made[: len(made) - size])


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8)


@PARSERS
def test_the_examples_are_good(parse: Callable[[bytes], object]) -> None:
    parse(GOOD[parse])


@PARSERS
@given(data=st.binary(max_size=512))
def test_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@PARSERS
@given(changes=CHANGES, size=st.integers(0, 200))
def test_altered_bytes(
    parse: Callable[[bytes], object], changes: list[tuple[int, int]], size: int
) -> None:
    with contextlib.suppress(MalformedError):
        parse(altered(GOOD[parse], changes, size))


@settings(max_examples=50)
@given(changes=CHANGES, where=st.sampled_from(["report", "leaf", "issuer"]))
def test_altered_evidence_is_not_affirmed(changes: list[tuple[int, int]], where: str) -> None:
    leaf, issuer, *rest = GPU.chain
    made = {"report": REPORT, "leaf": leaf, "issuer": issuer}
    made[where] = altered(made[where], changes, 0)
    evidence = GpuEvidence(
        devices=(GpuDevice(report=made["report"], chain=(made["leaf"], made["issuer"], *rest)),)
    )
    result = run(
        verify_nvgpu, evidence, policy=as_captured(development()), roots=NVIDIA.roots, at=NOW
    )
    same = made == {"report": REPORT, "leaf": leaf, "issuer": issuer}
    assert (result.verdict is Finding.AFFIRMING) is same


@settings(max_examples=50)
@given(changes=CHANGES)
def test_altered_manifests_say_nothing_else(changes: list[tuple[int, int]]) -> None:
    """Some bytes of a manifest mean nothing, such as line breaks within certificates."""
    result = run(
        verify_nvgpu,
        RimEvidence(document=altered(RIM, changes, 0)),
        policy=development(),
        roots=NVIDIA.roots,
        at=NOW,
    )
    if result.verdict is Finding.AFFIRMING:
        assert result.facts["golden"] == {"1": {"active": True, "hashes": [digest("one").hex()]}}
        assert result.facts["version"] == ["550.90.07"]
