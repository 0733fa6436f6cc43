"""Signs programs for Secure Boot, and the same bytes every time.

Sources: Microsoft, "Windows Authenticode Portable Executable Signature Format" (2008); RFC 2315
(PKCS #7 version 1.5) for ``SignedData``; UEFI specification 2.10, section 32.2.4, for the
certificate table. RSA with PKCS #1 v1.5 and SHA-256, which every firmware with Secure Boot knows;
no time of signing, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import BuildError
from cloister.image.authenticode import parse_pe
from cloister.image.der import (
    BIT_STRING,
    NULL,
    OCTET_STRING,
    context,
    integer,
    oid,
    sequence,
    set_of,
    value,
)

CODE: Final = "image.signing"

MIN_RSA_BITS: Final = 2048

_SIGNED_DATA: Final = oid("1.2.840.113549.1.7.2")
_CONTENT_TYPE: Final = oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = oid("1.2.840.113549.1.9.4")
_INDIRECT_DATA: Final = oid("1.3.6.1.4.1.311.2.1.4")
_PE_IMAGE_DATA: Final = oid("1.3.6.1.4.1.311.2.1.15")
_SHA256: Final = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
_RSA: Final = sequence(oid("1.2.840.113549.1.1.1"), NULL)
_OBSOLETE: Final = "<<<Obsolete>>>".encode("utf-16-be")
"""What stands where page hashes once did, and what every signing tool writes."""

_REVISION: Final = 0x0200
_PKCS_SIGNED_DATA: Final = 0x0002
_ALIGNMENT: Final = 8


def sign_program(data: bytes, *, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    """`data`, a PE file without a signature, followed by one that `certificate` vouches for.

    The digest that firmware measures does not change, where `data` is a multiple of eight bytes
    long; otherwise zeros are appended first.

    Raises:
        MalformedError: `data` is no program (code ``image.pe``).
        BuildError: it is signed already, or key and certificate do not fit (code
            ``image.signing``).
    """
    if key.key_size < MIN_RSA_BITS or certificate.public_key() != key.public_key():
        raise BuildError(
            f"Secure Boot takes an RSA key of {MIN_RSA_BITS} bits or more, and its certificate",
            code=CODE,
        )
    padded = data + bytes(-len(data) % _ALIGNMENT)
    program = parse_pe(padded)
    if program.certificates_at != len(padded):
        raise BuildError("the program is signed already", code=CODE)
    signature = _signed_data(program.digest(), key, certificate)
    body = signature + bytes(-len(signature) % _ALIGNMENT)
    size = 8 + len(body)
    entry = (
        size.to_bytes(4, "little")
        + _REVISION.to_bytes(2, "little")
        + _PKCS_SIGNED_DATA.to_bytes(2, "little")
        + body
    )
    where = len(padded).to_bytes(4, "little") + size.to_bytes(4, "little")
    at = program.directory_at
    return padded[:at] + where + padded[at + 8 :] + entry


def _signed_data(digest: bytes, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    """``ContentInfo`` with a ``SignedData`` over the digest of a program."""
    content = _indirect_data(digest)
    signed_part = content[2:] if content[1] < 0x80 else content[2 + (content[1] & 0x7F) :]
    attributes = [
        sequence(_CONTENT_TYPE, set_of([_INDIRECT_DATA])),
        sequence(
            _MESSAGE_DIGEST,
            set_of([value(OCTET_STRING, hashlib.sha256(signed_part).digest())]),
        ),
    ]
    # What is signed is the attributes as a SET; what is stored has another tag (RFC 2315 9.3).
    signature = key.sign(set_of(attributes), padding.PKCS1v15(), SHA256())
    signer = sequence(
        integer(1),
        sequence(certificate.issuer.public_bytes(), integer(certificate.serial_number)),
        _SHA256,
        context(0, *sorted(attributes)),
        _RSA,
        value(OCTET_STRING, signature),
    )
    signed = sequence(
        integer(1),
        set_of([_SHA256]),
        sequence(_INDIRECT_DATA, context(0, content)),
        context(0, certificate.public_bytes(Encoding.DER)),
        set_of([signer]),
    )
    return sequence(_SIGNED_DATA, context(0, signed))


def _indirect_data(digest: bytes) -> bytes:
    """``SpcIndirectDataContent``: the digest, and that it is a program's."""
    link = context(0, context(2, context(0, _OBSOLETE, primitive=True)))
    image = sequence(value(BIT_STRING, b"\0"), link)
    return sequence(sequence(_PE_IMAGE_DATA, image), sequence(_SHA256, value(OCTET_STRING, digest)))
