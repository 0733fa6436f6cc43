"""Quotes from anyone: they decode or are malformed, and say the same however they are padded."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.evidence.dcap import parse_pem_certificates, parse_quote
from cloister.evidence.sgx import parse_enclave_report
from cloister.evidence.tdx import parse_td_report
from support.dcap import pem, quote

VERSIONS = [3, 4, 5]


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
