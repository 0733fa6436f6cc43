"""A secret for a stock client, as a flattened JWE (RFC 7516, 7518): one recipient, A256GCM.

The protected header is written as the clients write it again: they decode it, encode the record
anew, and take that for the additional data (``kbs_types``, ``ProtectedHeader::generate_aad``). So
its members stand in one order, ``alg``, ``enc``, then the others by name, at every depth and
without white space; a header that says the same in another order opens for nobody.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from cloister.errors import MalformedError
from cloister.strictjson import Json, JsonObject, expect_str

RSA_OAEP: Final = "RSA-OAEP-256"
ECDH: Final = "ECDH-ES+A256KW"
ENCRYPTION: Final = "A256GCM"

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_RSA_BITS: Final = range(2048, 8193)
"""Below it is weak; above, wrapping takes long."""
_WHAT: Final = "tee-pubkey"


def seal_jwe(
    secret: bytes, jwk: JsonObject, *, random: Callable[[int], bytes] = os.urandom
) -> bytes:
    """The secret as a JWE in JSON, its key wrapped to `jwk` by the algorithm that it names.

    Raises MalformedError: it is no key of RSA or on a NIST curve, or for another algorithm.
    """
    content_key = random(_KEY_BYTES)
    alg = jwk.get("alg")
    more: JsonObject = {}
    if alg == RSA_OAEP:
        wrapped = _wrap_rsa(content_key, jwk)
    elif alg == ECDH:
        wrapped, more = _wrap_ecdh(content_key, jwk)
    else:
        raise MalformedError(f"{_WHAT} is for neither {RSA_OAEP} nor {ECDH}")
    header = {"alg": alg, "enc": ENCRYPTION, **more}
    protected = _text(json.dumps(header, separators=(",", ":")).encode())
    nonce = random(_NONCE_BYTES)
    sealed = AESGCM(content_key).encrypt(nonce, secret, protected.encode("ascii"))
    parts = {
        "protected": protected,
        "encrypted_key": _text(wrapped),
        "iv": _text(nonce),
        "ciphertext": _text(sealed[:-_TAG_BYTES]),
        "tag": _text(sealed[-_TAG_BYTES:]),
    }
    return json.dumps(parts, separators=(",", ":")).encode()


def _wrap_rsa(content_key: bytes, jwk: JsonObject) -> bytes:
    modulus, exponent = (int.from_bytes(_bytes(jwk, name)) for name in ("n", "e"))
    try:
        if jwk.get("kty") != "RSA" or modulus.bit_length() not in _RSA_BITS:
            raise ValueError
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        # Some numbers that are no key's are found out here only.
        return key.encrypt(content_key, padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))
    except ValueError:
        raise MalformedError(
            f"{_WHAT} is no RSA key of {_RSA_BITS[0]} to {_RSA_BITS[-1]} bits"
        ) from None


def _wrap_ecdh(content_key: bytes, jwk: JsonObject) -> tuple[bytes, JsonObject]:
    """RFC 7518, section 4.6: ECDH with a key made for this, Concat KDF, AES Key Wrap."""
    name = expect_str(jwk.get("crv"), "a key's curve", limit=16)
    x, y = _bytes(jwk, "x"), _bytes(jwk, "y")
    try:
        curve = _CURVES[name]
        size = (curve.key_size + 7) // 8
        if jwk.get("kty") != "EC" or len(x) != size or len(y) != size:
            raise ValueError
        theirs = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x), int.from_bytes(y), curve
        ).public_key()
    except (KeyError, ValueError):
        raise MalformedError(f"{_WHAT} is no point on {', '.join(_CURVES)}") from None
    ours = ec.generate_private_key(curve)
    numbers = ours.public_key().public_numbers()
    epk: dict[str, Json] = {
        "crv": name,
        "kty": "EC",
        "x": _text(numbers.x.to_bytes(size)),
        "y": _text(numbers.y.to_bytes(size)),
    }
    shared = ours.exchange(ec.ECDH(), theirs)
    about = b"".join(
        (
            len(ECDH).to_bytes(4),
            ECDH.encode("ascii"),
            bytes(4),  # nothing is said of either party
            bytes(4),
            (8 * _KEY_BYTES).to_bytes(4),
        )
    )
    wrapping_key = ConcatKDFHash(SHA256(), _KEY_BYTES, about).derive(shared)
    return aes_key_wrap(wrapping_key, content_key), {"epk": epk}


def _bytes(jwk: JsonObject, name: str) -> bytes:
    value = expect_str(jwk.get(name), f"{_WHAT}'s {name}", limit=2048)
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise MalformedError(f"{_WHAT}'s {name} is not base64url") from None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
