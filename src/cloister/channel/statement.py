"""The attestation statement of `aci/1` section 3.2: what the hardware signs.

The statement is a fixed template that the verifier builds for itself; it is never read from
a report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

NONCE_SIZE = 32
"""Bytes of a client's nonce; 64 lower-case hex characters on the wire."""

REPORT_DATA_SIZE = 64
"""Bytes of the report-data slot of SEV-SNP, TDX and SGX."""

StatementDigest = Callable[[str, bytes | None], bytes]
"""From a keyset's digest and a nonce to the digest that evidence for one purpose binds:
`statement_digest` below, or that of another purpose (`cloister.channel.key_release`)."""


def statement(keyset_digest: str, nonce: bytes | None) -> bytes:
    """Build the statement over `keyset_digest` (``sha256:<64 hex>``) and a 32-byte `nonce`.

    `nonce` is ``None`` for the unchallenged form, which proves no freshness.
    """
    prefix, _, digest = keyset_digest.partition(":")
    if prefix != "sha256" or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("a keyset digest is sha256: and 64 lower-case hex characters")
    if nonce is None:
        challenge = "null"
    elif len(nonce) == NONCE_SIZE:
        challenge = f'"{nonce.hex()}"'
    else:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
    return (
        f'{{"keyset_digest":"{keyset_digest}","nonce":{challenge},"purpose":"aci.report_data.v1"}}'
    ).encode("ascii")


def statement_digest(keyset_digest: str, nonce: bytes | None) -> bytes:
    """SHA-256 of the statement, 32 bytes: a TPM quote's qualifying data."""
    return hashlib.sha256(statement(keyset_digest, nonce)).digest()


def report_data(keyset_digest: str, nonce: bytes | None) -> bytes:
    """The statement's digest, zero-padded to the 64 bytes of a report-data slot."""
    return statement_digest(keyset_digest, nonce).ljust(REPORT_DATA_SIZE, b"\x00")
