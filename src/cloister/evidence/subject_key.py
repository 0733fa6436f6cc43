"""Public keys as certificates hold them: the SubjectPublicKeyInfo of RFC 5280 section 4.1.2.7.

DER (ITU-T X.690), read by hand with every length in its shortest form. Who only asks whether a
certificate is for a key that a TPM holds needs nothing else of it, and a guest asks nothing else:
a reader of all of X.509 takes a quarter of a second to import where instructions are emulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import Curve, EccPublic, RsaPublic

_INTEGER: Final = 0x02
_BIT_STRING: Final = 0x03
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0

_BETWEEN: Final = 4
"""Between serial number and key: signature algorithm, issuer, validity and subject."""

_RSA: Final = bytes.fromhex("06092a864886f70d010101 0500")
"""Object identifier rsaEncryption, and NULL (RFC 3279 section 2.3.1)."""
_ECC: Final = bytes.fromhex("06072a8648ce3d0201")
"""Object identifier id-ecPublicKey; that of a curve follows (RFC 5480 section 2.1.1)."""
_CURVES: Final[Mapping[int, tuple[bytes, int]]] = {
    Curve.NIST_P256: (bytes.fromhex("06082a8648ce3d030107"), 32),
    Curve.NIST_P384: (bytes.fromhex("06052b81040022"), 48),
    Curve.NIST_P521: (bytes.fromhex("06052b81040023"), 66),
}
"""Object identifiers, and bytes of a coordinate."""


def parse_subject_key(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate (DER), as it stands there.

    The order and types of what surrounds it are checked, and that nothing follows; neither dates,
    names, extensions nor the key itself. Nothing is authenticated.

    Raises MalformedError (code ``certificate_malformed``), and nothing else.
    """
    outer = _reader(certificate)
    parts = _reader(_element(outer, _SEQUENCE))
    outer.finish()
    signed = _reader(_element(parts, _SEQUENCE))
    _element(parts, _SEQUENCE)
    _element(parts, _BIT_STRING)
    parts.finish()
    tag, _ = _any(signed)
    if tag == _VERSION:
        tag, _ = _any(signed)
    if tag != _INTEGER:
        raise signed.fail("has no serial number where it belongs")
    for _ in range(_BETWEEN):
        _element(signed, _SEQUENCE)
    return _encoded(_SEQUENCE, _element(signed, _SEQUENCE))


def encode_subject_key(key: RsaPublic | EccPublic) -> bytes:
    """Encode the key of a TPM's public area as a SubjectPublicKeyInfo (DER), points uncompressed.

    Raises:
        MalformedError: the key is on another curve than P-256, P-384 and P-521.
    """
    match key:
        case RsaPublic(modulus=modulus, exponent=exponent):
            numbers = _integer(int.from_bytes(modulus, "big")) + _integer(exponent or 65537)
            algorithm, value = _RSA, _encoded(_SEQUENCE, numbers)
        case EccPublic(curve=curve, x=x, y=y):
            if curve not in _CURVES:
                raise MalformedError("the TPM's key is on a curve that certificates do not name")
            oid, size = _CURVES[curve]
            # There are TPMs that leave out leading zeros of a coordinate.
            algorithm, value = _ECC + oid, b"\x04" + x.rjust(size, b"\0") + y.rjust(size, b"\0")
    bits = _encoded(_BIT_STRING, b"\0" + value)
    return _encoded(_SEQUENCE, _encoded(_SEQUENCE, algorithm) + bits)


def _reader(data: bytes) -> ByteReader:
    return ByteReader(data, what="the certificate", code="certificate_malformed", byteorder="big")


def _element(reader: ByteReader, tag: int) -> bytes:
    found, content = _any(reader)
    if found != tag:
        raise reader.fail("has its parts in another order")
    return content


def _any(reader: ByteReader) -> tuple[int, bytes]:
    """Tag (one byte) and content of the next value."""
    tag, size = reader.integer(1), reader.integer(1)
    if size & 0x80:
        width = size & 0x7F
        if width not in (1, 2):
            raise reader.fail("has a length of no or too many bytes")
        size = reader.integer(width)
        if size < (0x80 if width == 1 else 0x100):
            raise reader.fail("has a length that is not in its shortest form")
    return tag, reader.take(size)


def _encoded(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _integer(number: int) -> bytes:
    return _encoded(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))
