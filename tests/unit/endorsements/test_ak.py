"""Attestation keys of TPMs, in every form that they come in."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.endorsements.ak import (
    AK_ATTRIBUTES,
    GOOGLE_INSTANCE,
    MAX_CERTIFICATE_BYTES,
    AkPublic,
    GoogleInstance,
    certified_key,
    google_instance,
    parse_ak_certificate,
    parse_ak_public,
    rsa_key,
    same_key,
)
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Vendor
from cloister.errors import MalformedError
from cloister.evidence.tpm import ObjectAttribute, attest_kind, sized
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm, simulated_rsa_key

NOW = datetime(2026, 6, 1, tzinfo=UTC)
VENDOR = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
RSA = SimulatedVtpm()
CERTIFICATE = VENDOR.certify(RSA.key.public_key())
SPKI = RSA.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PEM = RSA.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("padding", [b"", b"\0", bytes(300), b"\xff" * 300])
def test_a_certificate_with_the_rest_of_its_nv_memory(padding: bytes) -> None:
    certificate = parse_ak_certificate(CERTIFICATE + padding)
    assert certificate.public_bytes(Encoding.DER) == CERTIFICATE
    assert same_key(certified_key(certificate), RSA.key.public_key())


def test_a_certificate_in_pem_that_the_library_would_warn_of() -> None:
    """AMD's have the serial number 0; warnings are errors here."""
    amd = SimulatedAmd(now=datetime(2026, 3, 1, tzinfo=UTC))
    certificate = parse_certificate(amd.evidence().certificates[0])
    found = parse_ak_certificate(certificate.public_bytes(Encoding.PEM))
    assert found == certificate


def test_a_certificate_in_pem() -> None:
    pem = parse_ak_certificate(CERTIFICATE).public_bytes(Encoding.PEM)
    assert parse_ak_certificate(pem).public_bytes(Encoding.DER) == CERTIFICATE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        CERTIFICATE[:-1],
        CERTIFICATE + b"\0\xff",
        CERTIFICATE + CERTIFICATE,
        CERTIFICATE.ljust(MAX_CERTIFICATE_BYTES + 1, b"\0"),
        b"\x30\x80" + CERTIFICATE[4:] + bytes(2),
        b"\x30\x83\0" + CERTIFICATE[2:],
        b"\x30\x81\x05hello",
        b"\x30\x05hello",
        b"-----BEGIN CERTIFICATE-----",
    ],
)
def test_other_certificates_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_ak_certificate(data)


def test_a_certificate_for_a_key_that_quotes_nothing() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    certificate = parse_ak_certificate(VENDOR.certify(key.public_key()))  # type: ignore[arg-type]
    with pytest.raises(MalformedError):
        certified_key(certificate)


@pytest.mark.parametrize("form", [SPKI, PEM, RSA.public(), sized(RSA.public())])
def test_a_public_key_in_every_form(form: bytes) -> None:
    public = parse_ak_public(form)
    assert same_key(public.key, RSA.key.public_key())
    assert (public.area is None) == (form in {SPKI, PEM})
    assert public.may_attest == (public.area is not None)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_keys_on_curves(curve: ec.EllipticCurve) -> None:
    tpm = SimulatedVtpm(key=ec.generate_private_key(curve))
    assert same_key(parse_ak_public(tpm.public()).key, tpm.key.public_key())


@pytest.mark.parametrize("bit", [*ObjectAttribute(AK_ATTRIBUTES)])
def test_every_attribute_counts(bit: ObjectAttribute) -> None:
    assert parse_ak_public(RSA.public()).may_attest
    assert not parse_ak_public(RSA.public(attributes=AK_ATTRIBUTES & ~bit)).may_attest


def test_a_key_that_decrypts_as_well_is_none_for_quotes() -> None:
    both = AK_ATTRIBUTES | ObjectAttribute.DECRYPT
    assert not parse_ak_public(RSA.public(attributes=both)).may_attest


def off_curve() -> bytes:
    public = bytearray(SimulatedVtpm(key=ec.generate_private_key(ec.SECP256R1())).public())
    public[-1] ^= 1
    return bytes(public)


def other_curve() -> bytes:
    public = SimulatedVtpm(key=ec.generate_private_key(ec.SECP256R1())).public()
    return public.replace(b"\x00\x03\x00\x10\x00\x20", b"\x00\x10\x00\x10\x00\x20")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SPKI + b"\0",
        PEM[:-40],
        RSA.public() + b"\0",
        RSA.public()[:-1],
        bytes(9000),
        off_curve(),
        other_curve(),
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_other_public_keys_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_ak_public(data)


def test_numbers_that_are_no_key() -> None:
    rsa_key(modulus=simulated_rsa_key().public_key().public_numbers().n, exponent=65537)
    with pytest.raises(MalformedError):
        rsa_key(modulus=0, exponent=65537)
    with pytest.raises(MalformedError):
        rsa_key(modulus=simulated_rsa_key().public_key().public_numbers().n, exponent=2)


def test_without_the_tpms_form_there_are_no_attributes() -> None:
    assert not AkPublic(key=simulated_rsa_key().public_key(), area=None).may_attest


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


def instance(*more: bytes, identity: bytes = der(2, b"\x5e\x53\xe3\xfb\xbf\x83\x06\xc5")) -> bytes:
    return der(
        0x30,
        der(0x0C, b"us-central1-a"),
        der(2, b"\x1b\x5a"),
        der(0x0C, b"a-project"),
        identity,
        der(0x0C, b"a-name"),
        *more,
    )


def properties(production: bytes) -> bytes:
    version = der(0xA0, der(2, b"\0"))
    return der(0xA0, der(0x30, version, der(0xA1, der(1, production)), der(0xA2, der(2, b"\0"))))


def certificate_with(value: bytes) -> x509.Certificate:
    extension = x509.UnrecognizedExtension(GOOGLE_INSTANCE, value)
    return parse_ak_certificate(VENDOR.certify(RSA.key.public_key(), extensions=(extension,)))


def test_which_instance_a_key_belongs_to() -> None:
    assert google_instance(parse_ak_certificate(CERTIFICATE)) is None
    found = GoogleInstance(
        zone="us-central1-a",
        project_number=0x1B5A,
        project_id="a-project",
        instance_id=0x5E53E3FBBF8306C5,
        instance_name="a-name",
        production=None,
    )
    assert google_instance(certificate_with(instance())) == found
    for value, production in ((b"\xff", True), (b"\0", False)):
        read = google_instance(certificate_with(instance(properties(value))))
        assert read is not None
        assert read.production is production
    large = google_instance(certificate_with(instance(identity=der(2, b"\x9f" + bytes(7)))))
    assert large is not None
    assert large.instance_id == 0x9F << 56


@pytest.mark.parametrize(
    "value",
    [
        b"",
        instance() + b"\0\0",
        instance()[:-1],
        der(0x31, instance()[2:]),
        instance(identity=der(2)),
        instance(identity=der(2, bytes(10))),
        instance(identity=der(0x0C, b"5")),
        instance(der(0x0C, b"more")),
        instance(der(0xA0, der(2, b"\0"))),
        instance(properties(b"\xff"), properties(b"\xff")),
        b"\x30\x81" + instance()[1:],  # a length in two bytes where one would do
        b"\x30\x82\0" + instance()[1:],
        instance(der(0xA0, der(0x30, der(0xA1, der(2, b"\xff"))))),
        der(0x30, der(0x0C, b"\xff\xff"), *(instance()[17:],)),
    ],
)
def test_instances_are_read_strictly(value: bytes) -> None:
    with pytest.raises(MalformedError):
        google_instance(certificate_with(value))


def test_names_that_are_too_long_are_read_without_a_word() -> None:
    """As those of Google's CAs, which have up to 84 characters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a" * 84, _validate=False)])
        key = ec.generate_private_key(ec.SECP256R1())
        data = (
            x509.CertificateBuilder(subject_name=name, issuer_name=name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW)
            .sign(key, SHA256())
            .public_bytes(Encoding.DER)
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        certificate = parse_certificate(data)
        assert certificate.subject == certificate.issuer
    assert caught == []


def test_the_kind_of_an_attested_structure() -> None:
    quote = RSA.quote().quote
    assert attest_kind(quote) == (0xFF544347, 0x8018)
    assert attest_kind(b"\0\0\0\1\0\2") == (1, 2)
    with pytest.raises(MalformedError):
        attest_kind(quote[:5])
