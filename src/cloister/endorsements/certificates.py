"""X.509 certificates from outside: bytes to objects that hold no surprises."""

from __future__ import annotations

from cryptography import x509

from cloister.errors import MalformedError


def parse_certificate(data: bytes) -> x509.Certificate:
    """Decode one DER certificate (RFC 5280), whatever version it claims.

    The library decodes names and extensions on first use, and says what is wrong with them in
    exceptions of many kinds; here that happens at once. The public key is left to whoever wants
    one of a certain type. Nothing is authenticated.

    Raises MalformedError, and nothing else.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except (
        ValueError,
        TypeError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise MalformedError("a certificate does not decode") from None
    return certificate
