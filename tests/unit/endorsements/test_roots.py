"""Roots come from the relying party, and are what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.certificates import parse_certificate, parse_certificates, parse_crl
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import (
    MAX_ROOTS,
    Roots,
    Vendor,
    _twins,
    fingerprint,
    fingerprints,
    name_of,
)
from cloister.errors import ConfigurationError, MalformedError
from cloister.testing.simulated_tpm import SimulatedEnrolmentCa
from support.certificates import (
    P256_ORDER,
    P384_ORDER,
    issue,
    key_usage,
    respelled,
    revocation_list,
)

CA = SimulatedEnrolmentCa(now=datetime(2026, 11, 3, tzinfo=UTC))


def test_pem_there_and_back() -> None:
    again = Roots.from_pem(CA.roots.to_pem() * 2)
    assert again.enrolment_cas == (CA.certificate, CA.certificate)
    assert again.fingerprints == (fingerprint(CA.certificate),) * 2
    assert name_of(CA.certificate) == "CN=Simulated enrolment CA"


@pytest.mark.parametrize(
    ("curve", "order"), [(ec.SECP256R1(), P256_ORDER), (ec.SECP384R1(), P384_ORDER)]
)
def test_a_certificate_with_the_other_signature_is_the_same(
    curve: ec.EllipticCurve, order: int
) -> None:
    root = issue("Root", key=ec.generate_private_key(curve))
    for number in range(8):  # r and s with and without a leading zero
        leaf = issue(f"Leaf {number}", root, ca=False).certificate
        other = respelled(leaf, order)
        other.verify_directly_issued_by(root.certificate)
        assert fingerprint(other) != fingerprint(leaf)
        assert {fingerprint(leaf), fingerprint(other)} <= fingerprints(leaf) & fingerprints(other)
        assert not fingerprints(leaf) & fingerprints(root.certificate)


def test_a_long_signature_keeps_its_encoding() -> None:
    """P-521: the signature's own length takes two bytes."""
    root = issue("Root", key=ec.generate_private_key(ec.SECP521R1()))
    leaf = issue("Leaf", root, ca=False).certificate
    assert fingerprint(leaf) in fingerprints(leaf)
    (other,) = list(_twins(leaf))[-1:]
    x509.load_der_x509_certificate(other).verify_directly_issued_by(root.certificate)


def test_an_rsa_signature_has_one_spelling() -> None:
    signer = next(
        anchor.certificate for anchor in pinned_roots().anchors if anchor.vendor is Vendor.AMD
    )
    assert fingerprints(signer) == {fingerprint(signer)}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    path.write_bytes(CA.roots.to_pem())
    assert Roots.load(path, path).enrolment_cas == (CA.certificate, CA.certificate)


@pytest.mark.parametrize("data", [b"", b"nothing", CA.certificate.public_bytes(Encoding.DER)])
def test_what_is_no_pem_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(data)
    assert raised.value.code == "roots.malformed"


def test_the_certificate_of_a_key_is_no_root() -> None:
    leaf = CA.certify(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(leaf.public_bytes(Encoding.PEM))
    assert raised.value.code == "roots.not_a_ca"


def test_too_many_are_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(CA.roots.to_pem() * (MAX_ROOTS + 1))
    assert raised.value.code == "roots.many"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.load(tmp_path / "missing.pem")
    assert raised.value.code == "roots.unreadable"


def test_a_signature_with_unused_bits_is_another_spelling_and_refused() -> None:
    """The library reads past their number, which no signature covers."""
    root = issue("Root")
    leaves = (issue("Leaf", root, ca=False).certificate for _ in range(200))
    leaf = next(one for one in leaves if not one.signature[-1] & 1)
    der = leaf.public_bytes(Encoding.DER)
    at = len(der) - len(leaf.signature) - 1
    other = der[:at] + b"\x01" + der[at + 1 :]
    assert parse_certificates(der) == (leaf,)
    x509.load_der_x509_certificate(other).verify_directly_issued_by(root.certificate)
    pem = x509.load_der_x509_certificate(other).public_bytes(Encoding.PEM)
    for spelling in (other, pem):
        with pytest.raises(MalformedError):
            parse_certificates(spelling)
    with pytest.raises(MalformedError):
        parse_certificate(other)


def test_a_revocation_list_with_unused_bits() -> None:
    root = issue("Root", usage=key_usage(certificates=True))
    lists = (revocation_list(root) for _ in range(200))
    crl = next(one for one in lists if not one.signature[-1] & 1)
    der = crl.public_bytes(Encoding.DER)
    at = len(der) - len(crl.signature) - 1
    assert parse_crl(der) == crl
    with pytest.raises(MalformedError):
        parse_crl(der[:at] + b"\x01" + der[at + 1 :])
