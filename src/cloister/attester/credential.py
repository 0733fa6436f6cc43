"""``TPM2_MakeCredential`` in software: seal a secret to one key of one TPM.

Source: TCG "Trusted Platform Module Library", family 2.0, revision 01.59, Part 1 section 24
(credential protection), section 11.4.10 (KDFa, KDFe), annexes B.10.4 and C.6.4 (seeds).
Only the TPM that holds the endorsement key, and only for a loaded key of that very name, gives
the secret back. The endorsement key's parameters follow from its type by the templates of the
TCG "EK Credential Profile for TPM Family 2.0" (L-1, L-2, H-1, H-3, …).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from cloister.errors import UnsupportedError
from cloister.evidence.tpm import sized

EndorsementPublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_IDENTITY: Final = b"IDENTITY\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCredential:
    """What the TPM needs to give the secret back."""

    credential: bytes
    """``TPM2B_ID_OBJECT``."""
    secret: bytes
    """``TPM2B_ENCRYPTED_SECRET``."""


@dataclass(frozen=True, slots=True)
class _Template:
    hash_name: str
    symmetric_bits: int
    size: int
    """Bytes of the name algorithm's digest."""


_SHA256: Final = _Template("sha256", 128, 32)
_SHA384: Final = _Template("sha384", 256, 48)


def make_credential(
    endorsement_key: EndorsementPublicKey,
    name: bytes,
    secret: bytes,
    *,
    random_bytes: Callable[[int], bytes],
) -> SealedCredential:
    """Seal `secret` (at most 32 bytes) to the key called `name` beside `endorsement_key`.

    Raises:
        UnsupportedError: no endorsement key template has a key of this type and size.
    """
    template = _template(endorsement_key)
    if len(secret) > 32:
        raise ValueError("a credential has at most 32 bytes")
    if isinstance(endorsement_key, rsa.RSAPublicKey):
        seed, encrypted = _rsa_seed(endorsement_key, template, random_bytes)
    else:
        seed, encrypted = _ecc_seed(endorsement_key, template)
    storage = _kdfa(template, seed, b"STORAGE\0", name, template.symmetric_bits)
    # The zero IV is the protocol's: each seed encrypts once.
    cipher = Cipher(algorithms.AES(storage), CFB(bytes(16))).encryptor()
    identity = cipher.update(sized(secret)) + cipher.finalize()
    integrity = _kdfa(template, seed, b"INTEGRITY\0", b"", 8 * template.size)
    tag = hmac.digest(integrity, identity + name, template.hash_name)
    return SealedCredential(credential=sized(sized(tag) + identity), secret=encrypted)


def _template(key: EndorsementPublicKey) -> _Template:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size == 2048:
            return _SHA256
        if key.key_size in {3072, 4096}:
            return _SHA384
    elif isinstance(key.curve, ec.SECP256R1):
        return _SHA256
    elif isinstance(key.curve, ec.SECP384R1):
        return _SHA384
    raise UnsupportedError(
        "the endorsement key is of a type or size that no template names", code="tpm.ek_type"
    )


def _rsa_seed(
    key: rsa.RSAPublicKey, template: _Template, random_bytes: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    seed = random_bytes(template.size)
    algorithm = hashes.SHA256() if template is _SHA256 else hashes.SHA384()
    oaep = padding.OAEP(mgf=padding.MGF1(algorithm), algorithm=algorithm, label=_IDENTITY)
    return seed, sized(key.encrypt(seed, oaep))


def _ecc_seed(key: ec.EllipticCurvePublicKey, template: _Template) -> tuple[bytes, bytes]:
    ephemeral = ec.generate_private_key(key.curve)
    size = (key.curve.key_size + 7) // 8
    numbers = ephemeral.public_key().public_numbers()
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    seed = _kdfe(
        template,
        ephemeral.exchange(ec.ECDH(), key),
        x,
        key.public_numbers().x.to_bytes(size, "big"),
    )
    return seed, sized(sized(x) + sized(y))


def _kdfa(template: _Template, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    # SP 800-108 in counter mode, HMAC with the name algorithm.
    blocks = -(-bits // (8 * template.size))
    return b"".join(
        hmac.digest(
            key,
            counter.to_bytes(4, "big") + label + context + bits.to_bytes(4, "big"),
            template.hash_name,
        )
        for counter in range(1, blocks + 1)
    )[: bits // 8]


def _kdfe(template: _Template, z: bytes, party_u: bytes, party_v: bytes) -> bytes:
    # SP 800-56A one-step; a seed has the digest's size, so one block is all there is.
    return hashlib.new(
        template.hash_name, (1).to_bytes(4, "big") + z + _IDENTITY + party_u + party_v
    ).digest()
