"""X.509 certificates and revocation lists from outside: bytes to objects that hold no surprises."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from cloister.errors import MalformedError

MAX_CERTIFICATES: Final = 16
"""Certificates in one PEM text; chains in use have at most 5."""

T = TypeVar("T")

_PEM: Final = b"-----BEGIN"
_WRONG: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UserWarning,  # of which the library's own warnings are kinds
)

# AMD certifies chips (VCEK, VLEK) under the serial number 0, which RFC 5280 section 4.1.2.2
# forbids. `cryptography` warns of it, on reading and at each look at the number, and says that a
# future release will refuse such certificates. Until then that one warning is kept from getting
# out here; who needs the number asks `serial_number`. pyproject.toml admits no release that was
# not tried, and a test tells when one refuses: then these certificates need a reader of our own
# for what a chain asks of its leaf (names, dates, key, extensions, signature).
_SERIAL_WARNING: Final = "Parsed a serial number which wasn't positive"
# Google's CAs have common names of 79 characters and more, where X.520 allows 64; the library warns
# of that on the first look at a name.
_LENGTH_WARNING: Final = "Attribute's length must be"
_LONG_NAME: Final = re.compile(
    rb"\x06\x03\x55\x04.[\x0c\x13\x14](?:[\x41-\x7f]|\x81|\x82)", re.DOTALL
)
_LONG_SEQUENCE: Final = b"\x30\x82"
"""Head of a SEQUENCE of 256 to 65535 bytes, whose length takes two bytes more."""
_FILTERS: Final = threading.Lock()
_ATTEMPTS: Final = 8


def parse_certificate(data: bytes) -> x509.Certificate:
    """Decode one DER certificate (RFC 5280), whatever version it claims.

    The library decodes names, dates and extensions on first use, and says what is wrong with them
    in exceptions of many kinds; here that happens at once. The public key is left to whoever wants
    one of a certain type. A serial number of 0 and names that are too long are accepted, one
    below 0 is not: no revocation list can be asked about it. Nothing is authenticated.

    Raises MalformedError, and nothing else.
    """
    try:
        if _has_positive_serial(data):
            certificate = x509.load_der_x509_certificate(data)
        else:
            certificate = _quietly(lambda: x509.load_der_x509_certificate(data))
        return _decoded(certificate, data)
    except _WRONG:
        raise MalformedError("a certificate does not decode") from None


def parse_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """Decode one DER certificate, or a PEM text of at least one and at most `MAX_CERTIFICATES`.

    Otherwise as `parse_certificate`.

    Raises MalformedError, and nothing else.
    """
    if _PEM not in data:
        return (parse_certificate(data),)
    if data.count(_PEM) > MAX_CERTIFICATES:
        raise MalformedError(f"more than {MAX_CERTIFICATES} certificates in one text")
    try:
        certificates = _quietly(lambda: x509.load_pem_x509_certificates(data))
        return tuple(_decoded(one, one.public_bytes(Encoding.DER)) for one in certificates)
    except _WRONG:
        raise MalformedError("a certificate does not decode") from None


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Decode one revocation list (RFC 5280 section 5), DER or PEM. Nothing is authenticated.

    Raises MalformedError, and nothing else.
    """
    load = x509.load_pem_x509_crl if _PEM in data else x509.load_der_x509_crl
    try:
        crl = load(data)
        _check_last_bits(crl.signature, crl.public_bytes(Encoding.DER))
        _ = crl.issuer, crl.extensions, crl.last_update_utc, crl.next_update_utc
    except _WRONG:
        raise MalformedError("a revocation list does not decode") from None
    return crl


def serial_number(certificate: x509.Certificate) -> int:
    """The certificate's serial number, without a warning where it is 0."""
    return _quietly(lambda: certificate.serial_number)


def _decoded(certificate: x509.Certificate, der: bytes) -> x509.Certificate:
    if _LONG_NAME.search(der):
        _quietly(lambda: (certificate.subject, certificate.issuer))
    _ = certificate.subject, certificate.issuer, certificate.extensions
    _check_last_bits(certificate.signature, der)
    # A year 0, which DER can hold and `datetime` cannot.
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not _has_positive_serial(der) and serial_number(certificate) < 0:
        raise MalformedError("a certificate has a negative serial number")
    return certificate


def _check_last_bits(signature: bytes, der: bytes) -> None:
    """Refuse a signature, at the end of `der`, that is not made of whole bytes.

    The library passes over the number of unused bits before a signature, which nobody signs: one
    certificate would have as many digests as its signature ends in zero bits.

    Raises:
        ValueError: some of its bits are marked as unused.
    """
    if der[-len(signature) - 1]:
        raise ValueError("a signature has unused bits")


def _has_positive_serial(data: bytes) -> bool:
    """Whether the serial number is surely above 0; never of certificates below 256 bytes.

    Only saves the detour of `_quietly`, so it may be wrong about what does not decode anyway.
    """
    if data[:2] != _LONG_SEQUENCE or data[4:6] != _LONG_SEQUENCE:
        return False
    at = 13 if data[8:13] == b"\xa0\x03\x02\x01\x02" else 8  # behind the explicit version
    head = data[at : at + 3]
    return len(head) == 3 and head[0] == 2 and (0 < head[2] < 0x80 or (head[1] > 1 and not head[2]))


def _quietly(read: Callable[[], T]) -> T:
    """Call `read` with the warnings of serial numbers and long names ignored.

    Filters belong to the whole process. The lock keeps our own threads from mixing them up;
    a foreign thread that changes them at the same moment can at worst turn the warning on again
    (and into an exception, where warnings are errors), so then it is tried once more.
    """
    for _ in range(_ATTEMPTS):
        with _FILTERS, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=_SERIAL_WARNING, category=CryptographyDeprecationWarning
            )
            warnings.filterwarnings("ignore", message=_LENGTH_WARNING, category=UserWarning)
            try:
                return read()
            except UserWarning:
                continue
    return read()
