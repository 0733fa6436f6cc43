"""Key encapsulation for HPKE: DHKEM(X25519, HKDF-SHA256) and MLKEM768-X25519.

Sources: RFC 9180 sections 4.1 and 7.1 (KEM 0x0020); draft-ietf-hpke-pq section "Hybrid KEMs
with ECDH and ML-KEM" (KEM 0x647a), whose construction is X-Wing,
draft-connolly-cfrg-xwing-kem. Sizes in bytes:

=================  =====  =====  ====  =======
KEM                enc    public seed  secret
=================  =====  =====  ====  =======
X25519             32     32     32    32
MLKEM768_X25519    1120   1216   32    32
=================  =====  =====  ====  =======

Hybrid byte strings are the ML-KEM part followed by the X25519 part.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from enum import IntEnum
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.errors import ChannelError, MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

    Random = Callable[[int], bytes]

SECRET_SIZE = 32
_SEED_SIZE = 32
_X25519_SIZE = 32
_MLKEM_PUBLIC_SIZE = 1184
_MLKEM_CIPHERTEXT_SIZE = 1088
_XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")

OPEN_FAILED = "the sealed message could not be opened"


def open_failed() -> ChannelError:
    """Return the one error of every failed open, so that nobody learns which check failed."""
    return ChannelError(OPEN_FAILED)


class Kem(IntEnum):
    """HPKE KEM identifiers (IANA registry "HPKE KEM Identifiers")."""

    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A

    @property
    def public_size(self) -> int:
        """Npk: bytes of a serialized public key."""
        return _X25519_SIZE if self is Kem.X25519 else _MLKEM_PUBLIC_SIZE + _X25519_SIZE

    @property
    def enc_size(self) -> int:
        """Nenc: bytes of an encapsulated key."""
        return _X25519_SIZE if self is Kem.X25519 else _MLKEM_CIPHERTEXT_SIZE + _X25519_SIZE


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869 section 2.2); an empty salt means 32 zero bytes."""
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3).

    Raises RuntimeError when `length` is over 255 * 32 bytes.
    """
    if length > 255 * 32:
        raise RuntimeError("HKDF-SHA256 gives at most 8160 bytes")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def labeled_extract(suite_id: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract of RFC 9180 section 4."""
    return hkdf_extract(salt, b"HPKE-v1" + suite_id + label + ikm)


def labeled_expand(suite_id: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180 section 4."""
    header = length.to_bytes(2, "big") + b"HPKE-v1" + suite_id
    return hkdf_expand(prk, header + label + info, length)


class PrivateKey:
    """A KEM private key, held in memory as opened key objects.

    `public_bytes` is the serialized public key (sizes above).
    """

    __slots__ = ("_mlkem", "_seed", "_x25519", "_x25519_public", "kem", "public_bytes")

    def __init__(self, kem: Kem, seed: bytes) -> None:
        """Deserialize a private key: `seed` is 32 bytes for either KEM.

        For the hybrid the seed is expanded with SHAKE256 to 96 bytes: the 64-byte ML-KEM
        seed, then the X25519 scalar. Raises MalformedError on another length.
        """
        if len(seed) != _SEED_SIZE:
            raise MalformedError("an HPKE private key has 32 bytes")
        self.kem = kem
        self._seed = bytes(seed)
        scalar = self._seed
        self._mlkem: MLKEM768PrivateKey | None = None
        mlkem_public = b""
        if kem is Kem.MLKEM768_X25519:
            expanded = hashlib.shake_256(self._seed).digest(96)
            self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
            mlkem_public = self._mlkem.public_key().public_bytes_raw()
            scalar = expanded[64:]
        self._x25519 = X25519PrivateKey.from_private_bytes(scalar)
        self._x25519_public = self._x25519.public_key().public_bytes_raw()
        self.public_bytes = mlkem_public + self._x25519_public

    def __repr__(self) -> str:
        return f"<PrivateKey {self.kem.name}>"

    @classmethod
    def generate(cls, kem: Kem, random: Random = os.urandom) -> PrivateKey:
        """Make a key pair from 32 bytes of `random`."""
        return cls(kem, random(_SEED_SIZE))

    @classmethod
    def derive(cls, kem: Kem, ikm: bytes) -> PrivateKey:
        """DeriveKeyPair: the same key for the same input; `ikm` has at least 32 random bytes.

        RFC 9180 section 7.1.3 for X25519; draft-ietf-hpke-pq, one SHAKE256 LabeledDerive, for
        the hybrid. Raises RuntimeError when `ikm` is shorter than 32 bytes.
        """
        if len(ikm) < _SEED_SIZE:
            raise RuntimeError("deriving an HPKE key needs at least 32 bytes of key material")
        suite_id = _kem_suite_id(kem)
        if kem is Kem.X25519:
            prk = labeled_extract(suite_id, b"", b"dkp_prk", ikm)
            return cls(kem, labeled_expand(suite_id, prk, b"sk", b"", _SEED_SIZE))
        label = b"DeriveKeyPair"
        header = b"HPKE-v1" + suite_id + len(label).to_bytes(2, "big") + label
        labeled = ikm + header + _SEED_SIZE.to_bytes(2, "big")
        return cls(kem, hashlib.shake_256(labeled).digest(_SEED_SIZE))

    def private_bytes(self) -> bytes:
        """Return the 32-byte serialized private key. Secret: never store or log it."""
        return self._seed

    def decapsulate(self, enc: bytes) -> bytes:
        """Return the 32-byte shared secret behind `enc`.

        Raises the ChannelError of every failed open: on a wrong length, and on an X25519
        result of all zeros (RFC 9180 section 7.1.4). A manipulated ML-KEM ciphertext is
        rejected implicitly: it gives another secret, so the first AEAD open fails.
        """
        if len(enc) != self.kem.enc_size:
            raise open_failed()
        x25519_enc = enc[-_X25519_SIZE:]
        try:
            x25519_secret = self._x25519.exchange(X25519PublicKey.from_public_bytes(x25519_enc))
            if self._mlkem is None:
                return _dhkem_secret(x25519_secret, enc, self._x25519_public)
            mlkem_secret = self._mlkem.decapsulate(enc[:_MLKEM_CIPHERTEXT_SIZE])
        except ValueError:
            raise open_failed() from None
        return _hybrid_secret(mlkem_secret, x25519_secret, x25519_enc, self._x25519_public)


class PublicKey:
    """A KEM public key, held as opened key objects: opening ML-KEM's costs as much as using it.

    Raises MalformedError when the key has a wrong length or is not reduced (FIPS 203 section
    7.2).
    """

    __slots__ = ("_mlkem", "_x25519", "_x25519_public", "kem")

    def __init__(self, kem: Kem, data: bytes) -> None:
        """Deserialize a public key of `kem.public_size` bytes."""
        if len(data) != kem.public_size:
            raise MalformedError("the HPKE public key has a wrong length")
        self.kem = kem
        self._x25519_public = bytes(data[-_X25519_SIZE:])
        self._mlkem: MLKEM768PublicKey | None = None
        try:
            self._x25519 = X25519PublicKey.from_public_bytes(self._x25519_public)
            if kem is Kem.MLKEM768_X25519:
                self._mlkem = MLKEM768PublicKey.from_public_bytes(data[:_MLKEM_PUBLIC_SIZE])
        except ValueError:
            raise _unusable() from None

    def encapsulate(self, random: Random = os.urandom) -> tuple[bytes, bytes]:
        """Make a shared secret for this key; return (shared secret, enc).

        32 bytes of `random` become the X25519 ephemeral key; ML-KEM draws its own from
        OpenSSL. Raises MalformedError when the key gives an X25519 result of all zeros.
        """
        ephemeral = X25519PrivateKey.from_private_bytes(random(_X25519_SIZE))
        x25519_enc = ephemeral.public_key().public_bytes_raw()
        x25519_public = self._x25519_public
        try:
            x25519_secret = ephemeral.exchange(self._x25519)
            if self._mlkem is None:
                return _dhkem_secret(x25519_secret, x25519_enc, x25519_public), x25519_enc
            mlkem_secret, mlkem_enc = self._mlkem.encapsulate()
        except ValueError:
            raise _unusable() from None
        secret = _hybrid_secret(mlkem_secret, x25519_secret, x25519_enc, x25519_public)
        return secret, mlkem_enc + x25519_enc


def encapsulate(kem: Kem, public_key: bytes, random: Random = os.urandom) -> tuple[bytes, bytes]:
    """Open `public_key` and make a shared secret for it once; as `PublicKey.encapsulate`."""
    return PublicKey(kem, public_key).encapsulate(random)


def _unusable() -> MalformedError:
    return MalformedError("the HPKE public key cannot be used")


def _kem_suite_id(kem: Kem) -> bytes:
    return b"KEM" + kem.to_bytes(2, "big")


def _dhkem_secret(shared: bytes, enc: bytes, public: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180 section 4.1."""
    suite_id = _kem_suite_id(Kem.X25519)
    prk = labeled_extract(suite_id, b"", b"eae_prk", shared)
    return labeled_expand(suite_id, prk, b"shared_secret", enc + public, SECRET_SIZE)


def _hybrid_secret(mlkem: bytes, x25519: bytes, x25519_enc: bytes, x25519_public: bytes) -> bytes:
    """X-Wing's combiner: the ML-KEM ciphertext is left out because ML-KEM binds it itself."""
    return hashlib.sha3_256(mlkem + x25519 + x25519_enc + x25519_public + _XWING_LABEL).digest()
