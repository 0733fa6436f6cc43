"""Online certificate status (RFC 6960): the question, and whether an answer is to be believed.

No input or output: `cloister.endorsements.fetch.nvidia` sends the question, and a verifier checks
a cached or stapled answer with the same function.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.endorsements.certificates import parse_certificate
from cloister.errors import AuthenticationError, MalformedError

NONCE_BYTES: Final = 32
"""RFC 9654 section 2.1: what clients should send."""
SKEW: Final = timedelta(minutes=5)
MAX_AGE_WITHOUT_NEXT_UPDATE: Final = timedelta(days=1)
"""An answer without ``nextUpdate`` means that there is newer information at all times."""
MAX_RESPONDERS: Final = 4
"""Certificates that a response may bring; one is enough, and each may cost several signatures."""
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CODE: Final = "endorsement.ocsp"


class CertificateStatus(enum.StrEnum):
    """What a responder says of a certificate. Only ``good`` is good."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspAnswer:
    """An authenticated, current answer about one certificate."""

    status: CertificateStatus
    this_update: datetime
    next_update: datetime | None
    revoked_at: datetime | None
    nonce: bytes | None


def parse_ocsp(data: bytes) -> ocsp.OCSPResponse:
    """Decode one DER OCSP response with exactly one answer (RFC 6960 section 4.2.1).

    Raises MalformedError, and nothing else.
    """
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise MalformedError(
                f"the OCSP responder answered {response.response_status.name.lower()}"
            )
        _ = response.serial_number, response.certificate_status, response.extensions
        # A year 0, which DER can hold and `datetime` cannot.
        _ = response.this_update_utc, response.next_update_utc, response.revocation_time_utc
    except (ValueError, TypeError, x509.DuplicateExtension):
        raise MalformedError("an OCSP response does not decode") from None
    return response


def build_question(certificate: x509.Certificate, issuer: x509.Certificate, nonce: bytes) -> bytes:
    """The DER request about `certificate`, with a nonce (RFC 6960 sections 4.1 and 4.4.1)."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384())
    builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def check_answer(
    data: bytes,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    at: datetime,
    authorities: Sequence[x509.Certificate] = (),
    nonce: bytes | None = None,
) -> OcspAnswer:
    """Authenticate a DER response about `certificate`, which `issuer` issued.

    The signer is `issuer`, or a responder that `issuer` or one of `authorities` certified for
    this (RFC 6960 section 4.2.2.2). Where the responder repeats a nonce, it has to be `nonce`
    if that is given; responders that leave nonces out are accepted. Whether the responder's own
    certificate was revoked is not asked.

    Raises:
        AuthenticationError: the answer is about another certificate, not signed by who may, or
            not current (code ``endorsement.ocsp``).
        MalformedError: it does not decode.
    """
    response = parse_ocsp(data)
    if not _is_about(response, certificate, issuer):
        raise _refused("is about another certificate")
    if not _is_signed(response, issuer, authorities, at):
        raise _refused("is not signed by a responder of the certificate's issuer")
    answer = _answer(response)
    if nonce is not None and answer.nonce is not None and answer.nonce != nonce:
        raise _refused("repeats another question's nonce")
    until = answer.next_update or answer.this_update + MAX_AGE_WITHOUT_NEXT_UPDATE
    if not answer.this_update - SKEW <= at <= until:
        raise _refused(
            f"speaks for {answer.this_update:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC only"
        )
    return answer


def _is_about(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    """Compare the answer's CertID with what it has to be (RFC 6960 section 4.1.1)."""
    try:
        wanted = (
            ocsp.OCSPRequestBuilder()
            .add_certificate(certificate, issuer, response.hash_algorithm)
            .build()
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return (wanted.issuer_name_hash, wanted.issuer_key_hash, wanted.serial_number) == (
        response.issuer_name_hash,
        response.issuer_key_hash,
        response.serial_number,
    )


def _is_signed(
    response: ocsp.OCSPResponse,
    issuer: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    at: datetime,
) -> bool:
    """By whoever may: the name that the response gives its signer adds nothing to that."""
    return _verifies(response, issuer) or any(
        _may_answer(responder, (issuer, *authorities), at) and _verifies(response, responder)
        for responder in response.certificates[:MAX_RESPONDERS]
    )


def _may_answer(
    responder: x509.Certificate, issuers: Iterable[x509.Certificate], at: datetime
) -> bool:
    """A responder's certificate: made for this alone, current, from one of `issuers`.

    It came with the answer, decoded by the library only as far as anybody looks.
    """
    try:
        responder = parse_certificate(responder.public_bytes(Encoding.DER))
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, MalformedError):
        return False
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        return False
    if not responder.not_valid_before_utc <= at <= responder.not_valid_after_utc:
        return False
    return any(_issued(responder, issuer) for issuer in issuers)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _verifies(response: ocsp.OCSPResponse, responder: x509.Certificate) -> bool:
    try:
        key, algorithm = responder.public_key(), response.signature_hash_algorithm
        if not isinstance(algorithm, _HASHES):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(
                response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm
            )
        else:
            return False
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _answer(response: ocsp.OCSPResponse) -> OcspAnswer:
    try:
        nonce = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        nonce = None
    return OcspAnswer(
        status=CertificateStatus(response.certificate_status.name.lower()),
        this_update=response.this_update_utc,
        next_update=response.next_update_utc,
        revoked_at=response.revocation_time_utc,
        nonce=nonce,
    )


def _refused(why: str) -> AuthenticationError:
    return AuthenticationError(f"the OCSP response {why}", code=_CODE)
