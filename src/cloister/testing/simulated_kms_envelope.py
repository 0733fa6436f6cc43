"""Envelopes as AWS KMS makes them, definite or indefinite, whole or in pieces (RFC 5652, X.690)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7

from cloister.aws import ber, cms


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeStyle:
    """How an envelope is encoded; KMS has used several."""

    indefinite: bool = False
    """Lengths of what contains the content are left open."""
    piece: int | None = None
    """The content comes in octet strings of so many bytes."""


STYLES: dict[str, EnvelopeStyle] = {
    "definite": EnvelopeStyle(),
    "definite-split": EnvelopeStyle(piece=16),
    "indefinite": EnvelopeStyle(indefinite=True, piece=1024),
    "indefinite-split": EnvelopeStyle(indefinite=True, piece=16),
}


def encode(tag: int, content: bytes, *, indefinite: bool = False) -> bytes:
    """One BER element."""
    if indefinite:
        return bytes([tag, 0x80]) + content + b"\x00\x00"
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def seal_envelope(
    plaintext: bytes, recipient: RSAPublicKey, style: EnvelopeStyle | None = None
) -> bytes:
    """`plaintext` for `recipient`."""
    style = EnvelopeStyle() if style is None else style
    key, iv = os.urandom(32), os.urandom(16)
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    content = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    return encode_envelope(recipient.encrypt(key, oaep), iv, content, style)


def encode_envelope(key: bytes, iv: bytes, content: bytes, style: EnvelopeStyle) -> bytes:
    """The envelope around these parts."""
    recipient = encode(
        ber.SEQUENCE,
        encode(ber.INTEGER, b"\x02")
        + encode(0x80, bytes(20))
        + oaep_algorithm()
        + encode(ber.OCTET_STRING, key),
    )
    encrypted = encode(
        ber.SEQUENCE,
        encode(ber.OBJECT_IDENTIFIER, cms.DATA)
        + encode(
            ber.SEQUENCE,
            encode(ber.OBJECT_IDENTIFIER, cms.AES_256_CBC) + encode(ber.OCTET_STRING, iv),
        )
        + _content(content, style),
        indefinite=style.indefinite,
    )
    enveloped = encode(
        ber.SEQUENCE,
        encode(ber.INTEGER, b"\x02") + encode(ber.SET, recipient) + encrypted,
        indefinite=style.indefinite,
    )
    return encode(
        ber.SEQUENCE,
        encode(ber.OBJECT_IDENTIFIER, cms.ENVELOPED_DATA)
        + encode(0xA0, enveloped, indefinite=style.indefinite),
        indefinite=style.indefinite,
    )


def oaep_algorithm() -> bytes:
    """RSAES-OAEP with SHA-256 for everything."""
    sha256 = encode(
        ber.SEQUENCE, encode(ber.OBJECT_IDENTIFIER, cms.SHA_256) + encode(ber.NULL, b"")
    )
    mgf1 = encode(ber.SEQUENCE, encode(ber.OBJECT_IDENTIFIER, cms.MGF1) + sha256)
    parameters = encode(ber.SEQUENCE, encode(0xA0, sha256) + encode(0xA1, mgf1))
    return encode(ber.SEQUENCE, encode(ber.OBJECT_IDENTIFIER, cms.RSAES_OAEP) + parameters)


def _content(content: bytes, style: EnvelopeStyle) -> bytes:
    if style.piece is None:
        return encode(0x80, content)
    pieces = [content[at : at + style.piece] for at in range(0, len(content), style.piece)]
    return encode(
        0xA0,
        b"".join(encode(ber.OCTET_STRING, piece) for piece in pieces),
        indefinite=style.indefinite,
    )
