"""The signatures that a verification cannot avoid, checked by `cryptography` and nothing else."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Iterable
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

MESSAGE_BYTES = 600
"""About what an attestation report, a certificate or a quote has."""

_SHA256, _SHA384 = hashes.SHA256(), hashes.SHA384()


class Signature(enum.StrEnum):
    """A kind of signature, as platforms use them."""

    P256 = "P-256"
    P384 = "P-384"
    RSA_2048 = "RSA-2048"
    RSA_4096 = "RSA-4096"
    """PSS or PKCS #1: the padding is cheap."""


@cache
def checker(kind: Signature) -> Callable[[], None]:
    """What checks one signature of `kind`; its key is loaded, which evidence's is not."""
    message = os.urandom(MESSAGE_BYTES)
    if kind in {Signature.P256, Signature.P384}:
        narrow = kind is Signature.P256
        algorithm = ec.ECDSA(_SHA256 if narrow else _SHA384)
        private = ec.generate_private_key(ec.SECP256R1() if narrow else ec.SECP384R1())
        signature, public = private.sign(message, algorithm), private.public_key()
        return lambda: public.verify(signature, message, algorithm)
    size = 2048 if kind is Signature.RSA_2048 else 4096
    key = rsa.generate_private_key(public_exponent=65537, key_size=size)
    padded = padding.PSS(mgf=padding.MGF1(_SHA384), salt_length=_SHA384.digest_size)
    signed, shown = key.sign(message, padded, _SHA384), key.public_key()
    return lambda: shown.verify(signed, message, padded, _SHA384)


def cpu_of_signatures(kinds: Iterable[Signature], count: int) -> float:
    """CPU seconds of checking one signature of each of `kinds`, as a mean over `count` times."""
    checkers = [checker(kind) for kind in kinds]
    began = time.process_time()
    for _ in range(count):
        for check in checkers:
            check()
    return (time.process_time() - began) / count


def listed(kinds: Iterable[Signature]) -> str:
    """Signatures for people to read: ``2 P-384, 1 RSA-2048``."""
    given = list(kinds)
    return ", ".join(f"{given.count(kind)} {kind}" for kind in dict.fromkeys(given))
