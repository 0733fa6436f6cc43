"""An operator's Secure Boot keys, made for a test, in a folder as the commands take it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cloister.image.authenticode_sign import sign_program
from cloister.image.secure_boot_keys import SecureBootKeys, load_keys, load_signing_key


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKeys:
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> OperatorKeys:
        """One certificate for each of the three, by one and the same private key."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        folder.mkdir(exist_ok=True)
        for name in ("pk", "kek", "db"):
            der = _issue(name, key).public_bytes(Encoding.PEM)
            (folder / f"{name}.pem").write_bytes(der)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "db.key").write_bytes(private)
        return cls(folder=folder)

    @property
    def keys(self) -> SecureBootKeys:
        return load_keys(self.folder)

    def sign(self, program: bytes) -> bytes:
        key = load_signing_key(self.folder)
        return sign_program(program, key=key, certificate=self.keys.db)


def _issue(name: str, key: rsa.RSAPrivateKey) -> x509.Certificate:
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(named, named, key.public_key(), 77)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    dated = builder.not_valid_before(start).not_valid_after(start + timedelta(days=3650))
    return dated.sign(key, SHA256())
