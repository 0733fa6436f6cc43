"""Quotes from anyone: they decode or are malformed, and say the same however they are padded."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.endorsements.intel import Collateral
from cloister.errors import MalformedError
from cloister.evidence.dcap import parse_pem_certificates, parse_quote
from cloister.evidence.sgx import parse_enclave_report
from cloister.evidence.tdx import parse_td_report
from cloister.testing.simulated_dcap import SGX, TDX, SimulatedIntel
from cloister.verifier.evidence import run
from cloister.verifier.platforms.dcap import CollateralInput
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import strict
from cloister.verifier.result import AttestationResult, Finding
from support.dcap import pem, quote

VERSIONS = [3, 4, 5]
NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
INTEL = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
QUOTES = {"tdx": PLATFORM.tdx_quote(), "sgx": PLATFORM.sgx_quote()}
COLLATERAL: dict[str, Collateral] = {"tdx": INTEL.collateral(TDX), "sgx": INTEL.collateral(SGX)}
POLICY = dataclasses.replace(strict(), accept_development=True)


def verified(tee: str, data: bytes, collateral: CollateralInput) -> AttestationResult:
    if tee == "tdx":
        evidence: object = TdxEvidence(quote=data, collateral=collateral)
        return run(verify_tdx, evidence, policy=POLICY, roots=INTEL.roots, at=NOW)
    evidence = SgxEvidence(quote=data, collateral=collateral)
    return run(verify_sgx, evidence, policy=POLICY, roots=INTEL.roots, at=NOW)


GENUINE = {tee: verified(tee, data, COLLATERAL[tee]) for tee, data in QUOTES.items()}


@pytest.mark.parametrize(
    "parse", [parse_quote, parse_enclave_report, parse_td_report, parse_pem_certificates]
)
@given(data=st.binary(max_size=800))
def test_any_bytes(parse: object, data: bytes) -> None:
    assert callable(parse)
    with contextlib.suppress(MalformedError):
        parse(data)


@given(st.sampled_from(VERSIONS), st.integers(0, 1 << 16), st.integers(0, 255))
def test_a_changed_byte_is_seen(version: int, place: int, byte: int) -> None:
    """No byte of a quote is ignored: each is in a field, or changes what decodes."""
    good = quote(version)
    place %= len(good)
    changed = bytearray(good)
    changed[place] = byte
    with contextlib.suppress(MalformedError):
        parsed = dataclasses.replace(parse_quote(bytes(changed)), raw=b"")
        same = parsed == dataclasses.replace(parse_quote(good), raw=b"")
        assert same == (bytes(changed) == good)


@given(st.sampled_from(VERSIONS), st.integers(0, 4000))
def test_padding_changes_nothing(version: int, zeros: int) -> None:
    parsed = parse_quote(quote(version) + bytes(zeros))
    assert parsed.trailing_bytes == zeros
    assert parse_quote(parsed.raw) == parse_quote(quote(version))


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8))
def test_pem_there_and_back(certificates: list[bytes]) -> None:
    assert parse_pem_certificates(pem(*certificates)) == tuple(certificates)


@pytest.mark.parametrize("tee", ["tdx", "sgx"])
@given(place=st.integers(0, 1 << 16), flip=st.integers(1, 255))
def test_no_changed_quote_says_anything_new(tee: str, place: int, flip: int) -> None:
    """The root that a quote brings is never used: a change in it, and nowhere else, is accepted."""
    assert GENUINE[tee].verdict is Finding.AFFIRMING
    changed = bytearray(QUOTES[tee])
    changed[place % len(changed)] ^= flip
    result = verified(tee, bytes(changed), COLLATERAL[tee])
    assert result.verdict is not Finding.AFFIRMING or result.facts == GENUINE[tee].facts


@pytest.mark.parametrize("tee", ["tdx", "sgx"])
@given(data=st.binary(max_size=200), collateral=st.binary(max_size=200))
def test_any_evidence_is_judged(tee: str, data: bytes, collateral: bytes) -> None:
    assert verified(tee, data, COLLATERAL[tee]).verdict is not Finding.AFFIRMING
    assert verified(tee, QUOTES[tee], collateral).verdict is not Finding.AFFIRMING
