"""The simulated AMD never passes for the real one, and refuses what it does not understand."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.endorsements.certificates import parse_certificate, serial_number
from cloister.endorsements.pinned import pinned_roots
from cloister.evidence.snp import Product, SigningKey, parse_report
from cloister.testing.simulated_snp import SimulatedAmd, SimulatedKey
from cloister.verifier.chain import issued, same_key

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AMD = SimulatedAmd(now=NOW)


@pytest.mark.parametrize("product", Product)
def test_its_roots_are_development_and_nobody_elses(product: Product) -> None:
    (anchor,) = SimulatedAmd(now=NOW, product=product).roots.anchors
    assert anchor.development
    assert not any(same_key(anchor.certificate, one.certificate) for one in pinned_roots().anchors)


def test_rsa_keys_are_made_once_and_others_anew() -> None:
    again = SimulatedAmd(now=NOW)
    assert again.ark_key is AMD.ark_key
    assert AMD.ark_key is not AMD.ask_key
    assert again.key().certificate != again.key().certificate


@pytest.mark.parametrize("kind", [SigningKey.VCEK, SigningKey.VLEK])
def test_leaves_are_signed_with_serial_number_zero(kind: SigningKey) -> None:
    leaf = parse_certificate(AMD.key(kind).certificate)
    assert serial_number(leaf) == 0
    assert issued(leaf, AMD.asvk if kind is SigningKey.VLEK else AMD.ask)


def test_reports_are_signed() -> None:
    key = AMD.key()
    report = parse_report(AMD.report(key))
    signature = (report.signature_r, report.signature_s)
    assert verifies(key, report.signed, signature)


def verifies(key: SimulatedKey, message: bytes, signature: tuple[int, int]) -> bool:
    der = encode_dss_signature(*signature)
    key.private.public_key().verify(der, message, ec.ECDSA(SHA384()))
    return True


def test_a_field_that_no_report_has() -> None:
    with pytest.raises(TypeError, match="mr_td"):
        AMD.report(AMD.key(), mr_td=b"")


def test_secrets_are_not_shown() -> None:
    assert "private" not in repr(AMD.key())
