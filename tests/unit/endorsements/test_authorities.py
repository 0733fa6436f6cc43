"""CAs' certificates are decoded once, and like any other."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements import authorities
from cloister.endorsements.authorities import MAX_REMEMBERED_BYTES, REMEMBERED, parse_authority
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Vendor
from cloister.errors import MalformedError
from cloister.testing.simulated_vtpm import SimulatedAkVendor

VENDOR = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=datetime(2026, 6, 1, tzinfo=UTC))
DER = VENDOR.root.public_bytes(Encoding.DER)


def test_it_reads_what_any_certificate_says() -> None:
    assert parse_authority(DER) == parse_certificate(DER) == VENDOR.root
    assert parse_authority(DER) is parse_authority(bytes(bytearray(DER)))


def test_one_byte_makes_another_certificate() -> None:
    signed = bytearray(DER)
    signed[-1] ^= 1
    assert parse_authority(bytes(signed)) != parse_authority(DER)


@pytest.mark.parametrize("data", [b"", DER[:-1], DER + b"\0"])
def test_what_does_not_decode_is_refused_each_time(data: bytes) -> None:
    for _ in range(2):
        with pytest.raises(MalformedError):
            parse_authority(data)


def test_little_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert authorities._remembered.cache_parameters()["maxsize"] == REMEMBERED
    before = authorities._remembered.cache_info()
    with pytest.raises(MalformedError):
        parse_authority(bytes(MAX_REMEMBERED_BYTES + 1))
    assert authorities._remembered.cache_info() == before
