"""The key in a certificate, read by hand, is the one that a reader of all of X.509 finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

import cloister.endorsements.pinned
from cloister.errors import MalformedError
from cloister.evidence.subject_key import encode_subject_key, parse_subject_key
from cloister.evidence.tpm import Curve, EccPublic, RsaPublic

PINNED = sorted(Path(cloister.endorsements.pinned.__file__).parent.glob("*.pem"))
"""Of six vendors: RSA of up to 4096 bits and ECC, with and without a first byte of zero."""
CURVES: dict[Curve, ec.EllipticCurve] = {
    Curve.NIST_P256: ec.SECP256R1(),
    Curve.NIST_P384: ec.SECP384R1(),
    Curve.NIST_P521: ec.SECP521R1(),
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def spki(key: object) -> bytes:
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Attestation key")])
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.DER)


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.stem)
def test_the_key_of_a_vendors_certificate(path: Path) -> None:
    for one in x509.load_pem_x509_certificates(path.read_bytes()):
        assert parse_subject_key(one.public_bytes(Encoding.DER)) == spki(one.public_key())


def test_there_are_vendors_certificates() -> None:
    assert len(PINNED) > 20


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_key_on_a_curve_is_encoded_as_in_certificates(curve: Curve) -> None:
    size = -(-CURVES[curve].key_size // 8)
    # Small numbers have points with leading zeros among them, sooner or later.
    for number in range(1, 300):
        public = ec.derive_private_key(number, CURVES[curve]).public_key()
        point = public.public_numbers()
        x, y = (value.to_bytes(size, "big") for value in (point.x, point.y))
        assert encode_subject_key(EccPublic(curve=curve, x=x, y=y)) == spki(public)
        bare = EccPublic(curve=curve, x=x.lstrip(b"\0"), y=y.lstrip(b"\0"))
        assert encode_subject_key(bare) == spki(public)


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (2048, 3), (3072, 65537)])
def test_an_rsa_key_is_encoded_as_in_certificates(bits: int, exponent: int) -> None:
    public = rsa.generate_private_key(exponent, bits).public_key()
    modulus = public.public_numbers().n.to_bytes(bits // 8, "big")
    # On the wire of a TPM an exponent of 0 stands for the usual one.
    for said in {exponent, 0 if exponent == 65537 else exponent}:
        assert encode_subject_key(RsaPublic(bits=bits, exponent=said, modulus=modulus)) == (
            spki(public)
        )


def test_another_key_is_encoded_otherwise() -> None:
    point = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
    x, y = (value.to_bytes(32, "big") for value in (point.x, point.y))
    one = encode_subject_key(EccPublic(curve=Curve.NIST_P256, x=x, y=y))
    other = (point.y ^ 1).to_bytes(32, "big")
    assert one != encode_subject_key(EccPublic(curve=Curve.NIST_P256, x=x, y=other))
    assert one != encode_subject_key(EccPublic(curve=Curve.NIST_P384, x=x, y=y))


def test_a_key_on_another_curve_is_refused() -> None:
    encode_subject_key(EccPublic(curve=Curve.NIST_P256, x=bytes(32), y=bytes(32)))
    with pytest.raises(MalformedError):
        encode_subject_key(EccPublic(curve=0x0020, x=bytes(32), y=bytes(32)))  # SM2


def outer(content: bytes) -> bytes:
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_what_is_no_certificate_is_refused() -> None:
    der = certificate()
    # Lengths of two bytes and of one, then the version.
    assert der == outer(der[4:])
    assert der[4:6] == b"\x30\x81"
    assert der[7:12] == b"\xa0\x03\x02\x01\x02"
    serial = 12
    assert der[serial : serial + 2] == b"\x02\x01"
    key = der.index(parse_subject_key(der))
    wrong = {
        "bytes behind it": der + b"\0",
        "cut": der[:-1],
        "no length": b"\x30\x80" + der[4:] + b"\0\0",
        "a longer length than needed": b"\x30\x83\0" + der[2:],
        "another outer type": b"\x31" + der[1:],
        "another signed type": der[:4] + b"\x31" + der[5:],
        "no serial number": der[:serial] + b"\x04" + der[serial + 1 :],
        "another algorithm's type": der[: serial + 3] + b"\x31" + der[serial + 4 :],
        "a length with a zero before it": outer(der[4:5] + b"\x82\0" + der[6:]),
        "no key": der[:key] + b"\x31" + der[key + 1 :],
        "a part more": outer(der[4:] + b"\5\0"),
        "empty": b"",
        "a text": b"-----BEGIN CERTIFICATE-----",
    }
    parse_subject_key(der)
    for what, data in wrong.items():
        with pytest.raises(MalformedError) as caught:
            parse_subject_key(data)
        assert caught.value.code == "certificate_malformed", what
