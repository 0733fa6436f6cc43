"""A software TPM for tests: made once, copied for each test, gone with it."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester.swtpm import PROGRAMS, Manufactured, SoftwareTpm, manufacture
from cloister.evidence.tpm import EccPublic, parse_public

HAVE_SWTPM = all(shutil.which(name) for name in PROGRAMS)


@cache
def manufactured() -> Manufactured:
    """One TPM for the whole run; making it takes a second."""
    directory = Path(mkdtemp(prefix="cloister-test-tpm-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return manufacture(directory)


@contextmanager
def software_tpm() -> Iterator[tuple[SoftwareTpm, Manufactured]]:
    """A freshly started copy of that TPM."""
    made = manufactured()
    with TemporaryDirectory(prefix="cloister-test-") as directory:
        running = SoftwareTpm.start(made, runtime=Path(directory))
        try:
            yield running, made
        finally:
            running.stop()


def ak_certificate(public: bytes) -> bytes:
    """A certificate (DER) that nobody vouches for, of the ECC key with this ``TPMT_PUBLIC``."""
    key = parse_public(public).key
    assert isinstance(key, EccPublic)
    point = ec.EllipticCurvePublicNumbers(
        int.from_bytes(key.x, "big"), int.from_bytes(key.y, "big"), ec.SECP256R1()
    ).public_key()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AK")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(point)
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return made.public_bytes(Encoding.DER)
