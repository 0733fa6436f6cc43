"""What becomes of the host's certificate table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester.snp_items import snp_items
from cloister.evidence.items import (
    ITEM_SNP_REPORT,
    MEDIA_TYPE_CRL,
    MEDIA_TYPE_SNP_CERTIFICATE_TABLE,
)
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, Endorsement
from cloister.evidence.snp import CertificateKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def table(entries: list[tuple[CertificateKind, bytes]]) -> bytes:
    offset = 24 * (len(entries) + 1)
    header, body = b"", b""
    for kind, data in entries:
        at = offset + len(body)
        header += kind.value.bytes + at.to_bytes(4, "little") + len(data).to_bytes(4, "little")
        body += data
    return header + bytes(24) + body + bytes(64)


def endorsements(data: bytes) -> tuple[Endorsement, ...]:
    return snp_items(bytes(1184), data)[ITEM_SNP_REPORT].endorsements


CRL = (
    x509.CertificateRevocationListBuilder()
    .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ark")]))
    .last_update(NOW)
    .next_update(NOW + timedelta(days=1))
    .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
)
VCEK, ASK, ARK = (certificate(name) for name in ("vcek", "ask", "ark"))


def test_certificates_come_out_the_chip_first_whatever_the_form() -> None:
    found = endorsements(
        table(
            [
                (CertificateKind.ARK, ARK.public_bytes(Encoding.DER)),
                (CertificateKind.ASK, ASK.public_bytes(Encoding.PEM)),
                (CertificateKind.VCEK, VCEK.public_bytes(Encoding.DER)),
                (CertificateKind.CRL, CRL.public_bytes(Encoding.PEM)),
            ]
        )
    )
    assert [entry.data for entry in found] == [
        entry.public_bytes(Encoding.DER) for entry in (VCEK, ASK, ARK, CRL)
    ]
    assert [entry.media_type for entry in found] == [MEDIA_TYPE_CERTIFICATE] * 3 + [MEDIA_TYPE_CRL]


@pytest.mark.parametrize("empty", [b"", bytes(0x4000)])
def test_no_certificates_are_no_endorsements(empty: bytes) -> None:
    assert endorsements(empty) == ()


@pytest.mark.parametrize(
    "data",
    [
        b"no table at all",
        table([(CertificateKind.VCEK, b"no certificate")]),
        table([(CertificateKind.CRL, b"no list")]),
    ],
)
def test_what_does_not_decode_goes_out_as_it_is(data: bytes) -> None:
    (only,) = endorsements(data)
    assert only.data == data
    assert only.media_type == MEDIA_TYPE_SNP_CERTIFICATE_TABLE
