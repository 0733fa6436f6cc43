"""Whether a certificate is for a key that a TPM holds."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.endorsements.certificates import parse_certificate
from cloister.errors import MalformedError
from cloister.evidence.tpm import EccPublic, PublicArea, RsaPublic, parse_public


def is_certified(public: bytes, certificate: bytes) -> bool:
    """Whether `certificate` (DER) decodes, and is for the key `public` (``TPMT_PUBLIC``)."""
    try:
        return is_key_of(parse_public(public), parse_certificate(certificate))
    except (MalformedError, ValueError, UnsupportedAlgorithm):
        return False


def is_key_of(area: PublicArea, certificate: x509.Certificate) -> bool:
    """Whether `certificate` is for the key of `area`."""
    public = certificate.public_key()
    match area.key:
        case RsaPublic(modulus=modulus, exponent=exponent):
            if not isinstance(public, rsa.RSAPublicKey):
                return False
            numbers = public.public_numbers()
            return numbers.n == int.from_bytes(modulus, "big") and numbers.e == (exponent or 65537)
        case EccPublic(x=x, y=y):
            if not isinstance(public, ec.EllipticCurvePublicKey):
                return False
            point = public.public_numbers()
            return point.x == int.from_bytes(x, "big") and point.y == int.from_bytes(y, "big")
