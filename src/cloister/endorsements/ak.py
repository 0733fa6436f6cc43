"""Attestation keys (AKs) of TPMs: certificates as read from a TPM, and public keys in any form.

Sources: TCG "TPM 2.0 Library, Part 2: Structures", revision 01.59, section 12.2.4 (public areas);
TCG "EK Credential Profile", version 2.5 (extended key usages); Google's description of the
instance identity in certificates of its virtual TPMs (extension 1.3.6.1.4.1.11129.2.1.21).

Nothing here is authenticated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from cloister.endorsements.certificates import parse_certificate, parse_certificates
from cloister.errors import MalformedError
from cloister.evidence.tpm import (
    Curve,
    EccPublic,
    ObjectAttribute,
    PublicArea,
    RsaPublic,
    parse_public,
    parse_tpm2b_public,
)

TCG_KP_EK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.1")
TCG_KP_AIK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.3")
GOOGLE_INSTANCE: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")

MAX_CERTIFICATE_BYTES: Final = 16 * 1024
"""Longest certificate with padding; NV indices of TPMs hold 2 to 4 KiB."""

MAX_KEY_BYTES: Final = 8 * 1024

AK_ATTRIBUTES: Final = (
    ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
    | ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
)
"""What a key must be that signs quotes: made in this TPM, never leaving it, and *restricted*, so
that it signs nothing from outside that looks like a quote."""

_CODE: Final = "ak_malformed"
_CURVES: Final[dict[int, ec.EllipticCurve]] = {
    Curve.NIST_P256: ec.SECP256R1(),
    Curve.NIST_P384: ec.SECP384R1(),
    Curve.NIST_P521: ec.SECP521R1(),
}

AkKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AkPublic:
    """The public half of an attestation key."""

    key: AkKey
    area: PublicArea | None
    """What the TPM says of the key, where it came in the TPM's own form."""

    @property
    def may_attest(self) -> bool:
        """Whether the TPM's attributes are those of an attestation key; `area` must be there."""
        if self.area is None:
            return False
        attributes = self.area.attributes
        return attributes & AK_ATTRIBUTES == AK_ATTRIBUTES and not (
            attributes & ObjectAttribute.DECRYPT
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleInstance:
    """Which virtual machine a Google attestation key belongs to, in the words of its issuer."""

    zone: str
    project_number: int
    project_id: str
    instance_id: int
    instance_name: str
    production: bool | None
    """Whether the key is of Google's production environment; ``None`` where it does not say."""


def parse_ak_certificate(data: bytes) -> x509.Certificate:
    """Decode a certificate in DER as read from NV memory, or in PEM.

    What follows the DER up to the size of the NV index must be all zeros or all 0xFF.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"certificate has {len(data)} bytes")
    if data.startswith(b"-----BEGIN"):
        try:
            data = parse_certificates(data)[0].public_bytes(Encoding.DER)
        except MalformedError:
            raise _malformed("certificate is no PEM") from None
    certificate, padding = _split(data)
    if padding.strip(b"\0") and padding.strip(b"\xff"):
        raise _malformed("certificate is followed by something else than padding")
    return parse_certificate(certificate)


def certified_key(certificate: x509.Certificate) -> AkKey:
    """The certificate's public key, if it is one that can sign quotes.

    Raises MalformedError (code ``ak_malformed``), and nothing else.
    """
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _malformed("certificate holds no key that can be read") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise _malformed("key is neither RSA nor on a curve of NIST")
    return key


def parse_ak_public(data: bytes) -> AkPublic:
    """Decode a ``TPM2B_PUBLIC``, a ``TPMT_PUBLIC`` or a SubjectPublicKeyInfo (DER or PEM).

    The forms cannot be mistaken for each other: a ``TPM2B`` begins with its own length, the others
    with the type of the key, ``0x30`` or ``-----``.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_KEY_BYTES:
        raise _malformed(f"key has {len(data)} bytes")
    if data.startswith((b"-----BEGIN", b"\x30")):
        return AkPublic(key=_spki(data), area=None)
    if len(data) == 2 + int.from_bytes(data[:2], "big"):
        area = parse_tpm2b_public(data)
    else:
        area = parse_public(data)
    return AkPublic(key=_from_area(area), area=area)


def rsa_key(*, modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """An RSA key from its numbers.

    Raises MalformedError (code ``ak_malformed``), and nothing else.
    """
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _malformed("key is no RSA key") from None


def same_key(one: AkKey, other: AkKey) -> bool:
    """Whether two public keys are one."""
    return _encoded(one) == _encoded(other)


def google_instance(certificate: x509.Certificate) -> GoogleInstance | None:
    """Decode the extension 1.3.6.1.4.1.11129.2.1.21; ``None`` where there is none.

    ``SEQUENCE { zone UTF8String, project number INTEGER, project id UTF8String, instance id
    INTEGER, instance name UTF8String, [0] { SEQUENCE { [0] version, [1] production BOOLEAN, … } }
    OPTIONAL }``. Other members of the last part are not looked at.

    Raises MalformedError (code ``ak_malformed``), and nothing else.
    """
    for extension in certificate.extensions:
        if extension.oid == GOOGLE_INSTANCE and isinstance(
            extension.value, x509.UnrecognizedExtension
        ):
            return _instance(list(_members(_only(extension.value.value, 0x30))))
    return None


def _instance(members: list[tuple[int, bytes]]) -> GoogleInstance:
    tags = [tag for tag, _content in members]
    if tags[:5] != [0x0C, 0x02, 0x0C, 0x02, 0x0C] or tags[5:] not in ([], [0xA0]):
        raise _malformed("certificate names no instance of Google's")
    zone, number, project, instance, name = (content for _tag, content in members[:5])
    production = None
    for tag, content in _members(_only(members[5][1], 0x30)) if members[5:] else ():
        if tag == 0xA1:
            production = _only(content, 0x01) == b"\xff"
    return GoogleInstance(
        zone=_text(zone),
        project_number=_unsigned(number),
        project_id=_text(project),
        instance_id=_unsigned(instance),
        instance_name=_text(name),
        production=production,
    )


def _only(data: bytes, tag: int) -> bytes:
    members = list(_members(data))
    if [found for found, _content in members] != [tag]:
        raise _malformed("certificate has an extension that is not encoded as it should be")
    return members[0][1]


def _members(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags (of one byte) and contents of the DER values in `data`, one after the other."""
    while data:
        element, data = _split(data)
        header = 2 if element[1] < 0x80 else 2 + (element[1] & 0x7F)
        yield element[0], element[header:]


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The first DER value in `data`, header and all, and what follows it."""
    if len(data) < 2 or data[1] == 0x80 or data[1] > 0x83:
        raise _malformed("certificate is not DER")
    if data[1] < 0x80:
        end = 2 + data[1]
    else:
        width = data[1] & 0x7F
        length = int.from_bytes(data[2 : 2 + width], "big")
        if length < 0x80 or length >> 8 * (width - 1) == 0:
            raise _malformed("certificate is not DER")
        end = 2 + width + length
    if end > len(data):
        raise _malformed("certificate ends early")
    return data[:end], data[end:]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("certificate has a text that is no UTF-8") from None


def _unsigned(content: bytes) -> int:
    """A DER INTEGER; Google writes ids above 2**63 as negative numbers."""
    if not 1 <= len(content) <= 9:
        raise _malformed("certificate has a number of a wrong size")
    return int.from_bytes(content, "big", signed=True) & 0xFFFF_FFFF_FFFF_FFFF


def _spki(data: bytes) -> AkKey:
    load = load_pem_public_key if data.startswith(b"-----") else load_der_public_key
    try:
        key = load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _malformed("key is no SubjectPublicKeyInfo") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise _malformed("key is neither RSA nor on a curve of NIST")
    return key


def _from_area(area: PublicArea) -> AkKey:
    match area.key:
        case RsaPublic(exponent=exponent, modulus=modulus):
            # Exponent 0 stands for the default (Part 2 section 12.2.3.5).
            return rsa_key(modulus=int.from_bytes(modulus, "big"), exponent=exponent or 65537)
        case EccPublic(curve=curve, x=x, y=y):
            return _ecc_key(curve, int.from_bytes(x, "big"), int.from_bytes(y, "big"))


def _ecc_key(curve: int, x: int, y: int) -> ec.EllipticCurvePublicKey:
    named = _CURVES.get(curve)
    if named is None:
        raise _malformed(f"key is on curve 0x{curve:04x}, which is not known")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, named).public_key()
    except ValueError:
        raise _malformed("key is no point of its curve") from None


def _encoded(key: AkKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the attestation key's {why}", code=_CODE)
