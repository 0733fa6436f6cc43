"""A small certificate authority that can break every rule, for tests of chains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384_ORDER = (1 << 384) - 1388124618062372383947042015309946732620727252194336364173

NOW = datetime(2026, 6, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2027, 1, 1, tzinfo=UTC)


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def key_usage(*, certificates: bool, lists: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=lists,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A key and the certificate for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def name(self) -> x509.Name:
        return self.certificate.subject


def issue(
    common_name: str,
    issuer: Party | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    usage: x509.KeyUsage | None = None,
    constraints: bool = True,
    not_before: datetime = START,
    not_after: datetime = END,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    key: ec.EllipticCurvePrivateKey | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    algorithm: hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | None = None,
) -> Party:
    """Issue a certificate; without `issuer` a self-signed one. `signer` forges the signature."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(common_name))
        .issuer_name(named(common_name) if issuer is None else issuer.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if constraints:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length), critical=True
        )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signed_by = signer or (key if issuer is None else issuer.key)
    return Party(key=key, certificate=builder.sign(signed_by, algorithm or hashes.SHA256()))


def revocation_list(
    issuer: Party,
    *revoked: x509.Certificate,
    last_update: datetime = START,
    next_update: datetime = END,
    signer: ec.EllipticCurvePrivateKey | None = None,
    critical: bool = False,
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.name)
        .last_update(last_update)
        .next_update(next_update)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(START)
            .build()
        )
    if critical:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=True
        )
    return builder.sign(signer or issuer.key, hashes.SHA256())


def respelled(certificate: x509.Certificate, order: int) -> x509.Certificate:
    """The same certificate with the other ECDSA signature that holds; `order` of its CA's curve."""
    der, signed = certificate.public_bytes(Encoding.DER), certificate.tbs_certificate_bytes
    r, s = decode_dss_signature(certificate.signature)
    signature = encode_dss_signature(r, order - s)
    algorithm = der[der.index(signed) + len(signed) :][:12]
    assert algorithm[:2] == b"\x30\x0a"
    inner = signed + algorithm + bytes((3, len(signature) + 1, 0)) + signature
    assert 256 <= len(inner) < 65536
    assert len(signature) < 127
    return x509.load_der_x509_certificate(b"\x30\x82" + len(inner).to_bytes(2, "big") + inner)
