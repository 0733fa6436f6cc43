"""Authenticates the certificate of a TPM's attestation key (AK).

The chain runs from the AK's certificate, through intermediates that the report may bring, to
a certificate that the relying party pinned. A root in the report is never believed.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Roots, fingerprint
from cloister.errors import AuthenticationError, MalformedError
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, Endorsement

TCG_KP_AIK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""``tcg-kp-AIKCertificate``, the extended key usage of AK certificates (TCG OID registry)."""

MAX_INTERMEDIATES: Final = 2


def parse_chain(endorsements: tuple[Endorsement, ...]) -> tuple[x509.Certificate, ...]:
    """Read the DER certificates among a quote's endorsements, the AK's own first.

    Raises:
        AuthenticationError: code ``ak_uncertified``; there is none, or one does not decode.
    """
    chain = []
    for endorsement in endorsements:
        if endorsement.media_type != MEDIA_TYPE_CERTIFICATE:
            continue
        try:
            chain.append(parse_certificate(endorsement.data))
        except MalformedError:
            raise AuthenticationError(
                "A certificate in the report does not decode.", code="ak_uncertified"
            ) from None
    if not chain:
        raise AuthenticationError(
            "The report brings no certificate for the key that signed the quote.",
            code="ak_uncertified",
        )
    return tuple(chain)


def authenticate_chain(
    chain: tuple[x509.Certificate, ...], *, roots: Roots, at: datetime
) -> x509.Certificate:
    """Check that the AK certificate `chain[0]` is current and chains to a pinned root.

    Signatures, validity of every certificate at `at`, basic constraints, the key usage of CAs and
    unknown critical extensions are checked (RFC 5280 section 6.1). Revocation is not: an
    enrolment CA issues AK certificates that live for a day or so, and publishes no list. Returns
    the pinned root.

    Raises:
        AuthenticationError: codes ``ak_expired``, ``ak_root_unpinned``, ``ak_uncertified``.
    """
    leaf, intermediates = chain[0], chain[1:]
    pinned = roots.enrolment_cas
    root = _verified_root(leaf, intermediates, _store(pinned), at) if pinned else None
    if root is not None:
        return root
    raise _diagnose(chain, roots, at)


def authenticate_purpose(certificate: x509.Certificate) -> None:
    """Check that the certificate was issued for an attestation key, and for nothing above it.

    Raises:
        AuthenticationError: code ``ak_purpose``.
    """
    extensions = certificate.extensions
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = x509.ExtendedKeyUsage([])
    if TCG_KP_AIK_CERTIFICATE not in usages:
        raise AuthenticationError(
            "The certificate of the quoting key was not issued for attestation keys.",
            code="ak_purpose",
        )
    for extension in extensions:
        value = extension.value
        if (isinstance(value, x509.BasicConstraints) and value.ca) or (
            isinstance(value, x509.KeyUsage) and not value.digital_signature
        ):
            raise AuthenticationError(
                "The certificate of the quoting key is one of a CA, or of a key that must not"
                " sign.",
                code="ak_purpose",
            )


def p256_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the certificate's public key, which must be on NIST P-256.

    Raises:
        AuthenticationError: code ``ak_key_type``.
    """
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise AuthenticationError(
        "The quoting key is not an ECDSA key on the curve P-256.", code="ak_key_type"
    )


def _verified_root(
    leaf: x509.Certificate,
    intermediates: tuple[x509.Certificate, ...],
    roots: Store,
    at: datetime,
) -> x509.Certificate | None:
    """Return the root that the chain ends at, or ``None`` if it ends at none of `roots`."""
    # No extension but basic constraints is demanded of either: TCG's profiles leave subject and
    # alternative name to the issuer. What an AK certificate needs is checked by name above.
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_certify)
    )
    verifier = (
        PolicyBuilder()
        .store(roots)
        .time(at)
        .max_chain_depth(MAX_INTERMEDIATES)
        .extension_policies(ca_policy=authority, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        return verifier.verify(leaf, list(intermediates)).chain[-1]
    except VerificationError:
        return None


@lru_cache(maxsize=4)
def _store(roots: tuple[x509.Certificate, ...]) -> Store:
    """The pinned certificates, as the library decodes them for itself on first use: a third of the
    time that a chain takes. Every chain is checked against them, and at its own time."""
    return Store(list(roots))


def _may_certify(
    _policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    """Refuse a CA whose key is for other uses (RFC 5280 section 6.1.4, step n)."""
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("this key must not sign certificates")


def _diagnose(
    chain: tuple[x509.Certificate, ...], roots: Roots, at: datetime
) -> AuthenticationError:
    """Find out why a chain does not end at a pinned root. Decides nothing, only says why."""
    leaf, others = chain[0], chain[1:]
    issuers = tuple(root for root in roots.enrolment_cas if root.subject == chain[-1].issuer)
    for certificate in (*chain, *issuers):
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            return AuthenticationError(
                "A certificate in the quoting key's chain is not valid at this time (it is valid"
                f" from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to"
                f" {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC).",
                code="ak_expired",
            )
    own = tuple(certificate for certificate in others if certificate.subject == certificate.issuer)
    root = _verified_root(leaf, others, Store(list(own)), at) if own else None
    if root is not None and root not in roots.enrolment_cas:
        return AuthenticationError(
            "The quoting key is certified by a root that only the report names"
            f" ({fingerprint(root)}); pin it yourself if you trust it.",
            code="ak_root_unpinned",
        )
    return AuthenticationError(
        "The quoting key is not certified by a CA that you pinned.", code="ak_uncertified"
    )
