"""The envelope in which AWS KMS answers an attested request: CMS EnvelopedData, to its parts.

Sources: RFC 5652 sections 3, 5 and 6 (ContentInfo, EnvelopedData), RFC 4055 section 4.1 and
RFC 8017 appendix A.2.1 (RSAES-OAEP and its parameters), RFC 3565 (AES in CBC mode). AWS KMS makes
one kind only: version 2, one recipient known by a key identifier, RSAES-OAEP with SHA-256 and
MGF1 with SHA-256, AES-256-CBC, in definite or indefinite lengths, its content whole or in
pieces. Nothing else is accepted.

CBC authenticates nothing: what is opened is as genuine as the TLS connection it came over, and no
more. `open_enveloped_data` has one error for whatever is wrong behind the parser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7

from cloister.aws.ber import (
    INTEGER,
    NULL,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    SET,
    Element,
    parse_ber,
)
from cloister.errors import AuthenticationError, MalformedError

MAX_ENCRYPTED_KEY_BYTES: Final = 512
MAX_CONTENT_BYTES: Final = 16 * 1024
"""Of a plaintext KMS has at most 4096 bytes; of a data key pair's private half a little more."""

# Content of an OBJECT IDENTIFIER (X.690 section 8.19).
ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
DATA: Final = bytes.fromhex("2a864886f70d010701")
RSAES_OAEP: Final = bytes.fromhex("2a864886f70d010107")
MGF1: Final = bytes.fromhex("2a864886f70d010108")
P_SPECIFIED: Final = bytes.fromhex("2a864886f70d010109")
SHA_256: Final = bytes.fromhex("608648016503040201")
AES_256_CBC: Final = bytes.fromhex("60864801650304012a")

_IV_BYTES: Final = 16
_KEY_BYTES: Final = 32
_BLOCK_BITS: Final = 128
_CONTEXT_0: Final = 0x80
_CONTEXT_0_CONSTRUCTED: Final = 0xA0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopedData:
    """One envelope for one recipient."""

    key_identifier: bytes
    """As KMS names the recipient's key; not compared, since the key that opens it proves more."""
    encrypted_key: bytes
    iv: bytes
    ciphertext: bytes = field(repr=False)


def parse_enveloped_data(data: bytes) -> EnvelopedData:
    """Decode an envelope of KMS, as described above. Raises MalformedError, and nothing else."""
    content_type, wrapped = _sequence(parse_ber(data), 2, "ContentInfo")
    _identifier(content_type, ENVELOPED_DATA, "EnvelopedData")
    if wrapped.tag != _CONTEXT_0_CONSTRUCTED or len(wrapped.parts) != 1:
        raise _malformed("ContentInfo has no content")
    version, recipients, content = _sequence(wrapped.parts[0], 3, "EnvelopedData")
    _integer(version, 2, "EnvelopedData")
    if recipients.tag != SET or len(recipients.parts) != 1:
        raise _malformed("there is not exactly one recipient")
    key_identifier, encrypted_key = _recipient(recipients.parts[0])
    iv, ciphertext = _content(content)
    return EnvelopedData(
        key_identifier=key_identifier,
        encrypted_key=encrypted_key,
        iv=iv,
        ciphertext=ciphertext,
    )


def open_enveloped_data(envelope: EnvelopedData, key: RSAPrivateKey) -> bytes:
    """The content, by the recipient's key; AuthenticationError (``kms.envelope``) otherwise."""
    oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    try:
        content_key = key.decrypt(envelope.encrypted_key, oaep)
        if len(content_key) != _KEY_BYTES:
            raise ValueError
        decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(envelope.iv)).decryptor()
        padded = decryptor.update(envelope.ciphertext) + decryptor.finalize()
        unpadder = PKCS7(_BLOCK_BITS).unpadder()
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        raise AuthenticationError(
            "the envelope from KMS does not open with this request's key", code="kms.envelope"
        ) from None


def _recipient(element: Element) -> tuple[bytes, bytes]:
    """KeyTransRecipientInfo (RFC 5652 section 6.2.1), version 2."""
    version, identifier, algorithm, key = _sequence(element, 4, "KeyTransRecipientInfo")
    _integer(version, 2, "KeyTransRecipientInfo")
    if identifier.tag != _CONTEXT_0 or not 0 < len(identifier.content) <= 64:
        raise _malformed("the recipient is not named by a key identifier")
    _oaep(algorithm)
    encrypted = _octets(key, OCTET_STRING, limit=MAX_ENCRYPTED_KEY_BYTES)
    return identifier.content, encrypted


def _oaep(element: Element) -> None:
    """RSAES-OAEP with SHA-256, MGF1 with SHA-256 and an empty label, all said in words."""
    name, parameters = _sequence(element, 2, "the key's algorithm")
    _identifier(name, RSAES_OAEP, "RSAES-OAEP")
    if parameters.tag != SEQUENCE or len(parameters.parts) not in {2, 3}:
        # Left out they would mean SHA-1 (RFC 8017 appendix A.2.1).
        raise _malformed("RSAES-OAEP is without its parameters")
    digest, mask = parameters.parts[0], parameters.parts[1]
    if digest.tag != 0xA0 or len(digest.parts) != 1 or mask.tag != 0xA1 or len(mask.parts) != 1:
        raise _malformed("RSAES-OAEP has other parameters")
    _sha256(digest.parts[0])
    mgf1, mgf1_digest = _sequence(mask.parts[0], 2, "the mask function")
    _identifier(mgf1, MGF1, "MGF1")
    _sha256(mgf1_digest)
    for label in parameters.parts[2:]:
        if label.tag != 0xA2 or len(label.parts) != 1:
            raise _malformed("RSAES-OAEP has other parameters")
        specified, value = _sequence(label.parts[0], 2, "the label")
        _identifier(specified, P_SPECIFIED, "an empty label")
        if value.tag != OCTET_STRING or value.content:
            raise _malformed("RSAES-OAEP has a label")


def _sha256(element: Element) -> None:
    """SHA-256, with NULL for parameters or without (RFC 4055 section 2.1)."""
    if element.tag != SEQUENCE or len(element.parts) not in {1, 2}:
        raise _malformed("a digest's algorithm is none")
    _identifier(element.parts[0], SHA_256, "SHA-256")
    for parameters in element.parts[1:]:
        if parameters.tag != NULL or parameters.content:
            raise _malformed("SHA-256 has parameters")


def _content(element: Element) -> tuple[bytes, bytes]:
    """EncryptedContentInfo (RFC 5652 section 6.1): initialisation vector and ciphertext."""
    content_type, algorithm, encrypted = _sequence(element, 3, "EncryptedContentInfo")
    _identifier(content_type, DATA, "data")
    name, parameters = _sequence(algorithm, 2, "the content's algorithm")
    _identifier(name, AES_256_CBC, "AES-256-CBC")
    if parameters.tag != OCTET_STRING or len(parameters.content) != _IV_BYTES:
        raise _malformed(f"the initialisation vector has not {_IV_BYTES} bytes")
    ciphertext = _octets(encrypted, _CONTEXT_0, limit=MAX_CONTENT_BYTES)
    if not ciphertext or len(ciphertext) % _IV_BYTES:
        raise _malformed("the content is not made of whole blocks")
    return parameters.content, ciphertext


def _octets(element: Element, tag: int, *, limit: int) -> bytes:
    """An octet string with this tag: whole, or constructed of octet strings (X.690 8.7.3)."""
    if element.tag == tag:
        octets = element.content
    elif element.tag == tag | 0x20:
        octets = b"".join(_octets(part, OCTET_STRING, limit=limit) for part in element.parts)
    else:
        raise _malformed("an octet string is none")
    if len(octets) > limit:
        raise _malformed(f"an octet string has more than {limit} bytes")
    return octets


def _sequence(element: Element, size: int, what: str) -> tuple[Element, ...]:
    if element.tag != SEQUENCE or len(element.parts) != size:
        raise _malformed(f"{what} is not as expected")
    return element.parts


def _identifier(element: Element, expected: bytes, what: str) -> None:
    if element.tag != OBJECT_IDENTIFIER or element.content != expected:
        raise _malformed(f"an algorithm or type is not {what}")


def _integer(element: Element, expected: int, what: str) -> None:
    if element.tag != INTEGER or element.content != bytes([expected]):
        raise _malformed(f"{what} is not of version {expected}")


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the envelope from KMS cannot be read: {why}", code="kms.envelope_form")
