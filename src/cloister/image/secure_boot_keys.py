"""An operator's Secure Boot keys: a folder of certificates, and the state that they make.

::

    pk.pem    may replace all of them
    kek.pem   may change what is accepted
    db.pem    the certificate by which the image is signed
    db.key    its private key (RSA, PEM, no password); only for signing

One and the same certificate may be all three. Who put it there (the owner in signature lists) is
derived from the certificates, so that equal keys give equal bytes.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cloister.errors import ConfigurationError
from cloister.image.secure_boot import SecureBoot, signature_entry, signature_list

CODE: Final = "image.secure_boot_keys"

_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBootKeys:
    """Certificates of an operator's platform key, key exchange key, and signature database."""

    pk: x509.Certificate
    kek: x509.Certificate
    db: x509.Certificate

    @property
    def owner(self) -> uuid.UUID:
        """Who put the keys there, in signature lists: derived from the keys."""
        joined = b"".join(map(_der, (self.pk, self.kek, self.db)))
        return uuid.UUID(bytes=hashlib.sha256(joined).digest()[:16], version=5)

    def state(self) -> SecureBoot:
        """Secure Boot on, with these keys and no others, after it accepted the image."""
        owner = self.owner
        return SecureBoot(
            enabled=True,
            pk=signature_list(owner, _der(self.pk)),
            kek=signature_list(owner, _der(self.kek)),
            db=signature_list(owner, _der(self.db)),
            authority=signature_entry(owner, _der(self.db)),
        )


def load_keys(folder: Path) -> SecureBootKeys:
    """Read the certificates in `folder`.

    Raises:
        ConfigurationError: one is missing, or no certificate in PEM (code
            ``image.secure_boot_keys``).
    """
    names = ("pk.pem", "kek.pem", "db.pem")
    pk, kek, db = (_certificate(folder / name) for name in names)
    return SecureBootKeys(pk=pk, kek=kek, db=db)


def load_signing_key(folder: Path) -> rsa.RSAPrivateKey:
    """Read the private key in `folder`; errors as for `load_keys`."""
    path = folder / "db.key"
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):  # what the library says may quote the file
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigurationError(
            f"{path} is no RSA private key in PEM without a password", code=CODE
        )
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise ConfigurationError(f"{path} is no certificate in PEM", code=CODE) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code=CODE
        ) from None


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
