"""An OCSP responder, and the certificates it answers about."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.certificates import Party, issue
from support.published import NOW, NVIDIA

SIGNING = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)
OTHER_USE = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
ISSUER = issue("provisioner", NVIDIA)
DEVICE = issue("device", ISSUER, ca=False)
OTHER = issue("other device", ISSUER, ca=False)
STRANGER = issue("stranger")
RESPONDER = issue("responder", ISSUER, ca=False, extensions=[SIGNING])
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def answer(
    signer: Party = ISSUER,
    *,
    about: Party = DEVICE,
    issuer: Party = ISSUER,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    this_update: datetime = NOW - HOUR,
    next_update: datetime | None = NOW + DAY,
    nonce: bytes | None = None,
    algorithm: hashes.SHA224 | hashes.SHA256 | None = None,
    named_by: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.HASH,
) -> bytes:
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        about.certificate,
        issuer.certificate,
        hashes.SHA384(),
        status,
        this_update,
        next_update,
        NOW - DAY if revoked else None,
        None,
    )
    builder = builder.responder_id(named_by, signer.certificate)
    if signer is not ISSUER:
        builder = builder.certificates([signer.certificate])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(signer.key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)


def tampered(data: bytes) -> bytes:
    """The response with one bit of its signature changed."""
    signature = ocsp.load_der_ocsp_response(data).signature
    return data.replace(signature, signature[:-1] + bytes([signature[-1] ^ 1]))
