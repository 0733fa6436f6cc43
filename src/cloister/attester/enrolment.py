"""A small CA that certifies attestation keys, and is not the worker.

It certifies a key only after these steps, in order:

1. The certificate of the TPM's endorsement key (EK) chains to a manufacturer's CA that this
   CA pinned, is current, and was issued for endorsement keys.
2. The attestation key (AK) signs only what its TPM made itself and never leaves it:
   restricted, fixedTPM, fixedParent, sensitiveDataOrigin; ECDSA with SHA-256 on P-256.
3. The TPM that holds the EK gave back a secret sealed to the AK's name, which covers all of
   its attributes (credential activation, TPM 2.0 Part 1 section 24): the AK is in that TPM.

Certificates are short-lived instead of revocable. Clients pin the CA's own certificate.
What no step shows: that the TPM is hardware. With a software TPM the "manufacturer" is the
operator, and the certificate says nothing that the operator could not have made up.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cloister.attester.credential import SealedCredential, make_credential
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.evidence.tpm import (
    Alg,
    Curve,
    EccPublic,
    ObjectAttribute,
    PublicArea,
    parse_public,
)

TCG_KP_EK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.1")
TCG_KP_AIK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.3")

CA_LIFETIME: Final = timedelta(days=5 * 365)
AK_LIFETIME: Final = timedelta(hours=24)
"""Short, since nothing can be revoked; launchers renew at half of it."""
BACKDATED: Final = timedelta(minutes=5)
"""For clients whose clocks are behind."""
ANSWER_WITHIN: Final = timedelta(minutes=5)
MAX_PENDING: Final = 64
MAX_INTERMEDIATES: Final = 3
SECRET_BYTES: Final = 32

REQUIRED: Final = (
    ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
    | ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
)
FORBIDDEN: Final = ObjectAttribute.DECRYPT | ObjectAttribute.ENCRYPTED_DUPLICATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What the TPM must open to have its key certified."""

    id: str
    sealed: SealedCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    public_key: ec.EllipticCurvePublicKey
    secret: bytes
    expires: datetime


class EnrolmentCa:
    """Certifies attestation keys of TPMs whose manufacturers it pins."""

    def __init__(
        self,
        *,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        manufacturers: Sequence[x509.Certificate],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`manufacturers` are the CA certificates that EK certificates may chain to."""
        self._key = key
        self.certificate = certificate
        self._manufacturers = tuple(manufacturers)
        self._random_bytes = random_bytes
        self._pending: dict[str, _Pending] = {}
        self._certified: set[bytes] = set()

    @classmethod
    def in_memory(cls, *, manufacturers: Sequence[x509.Certificate], at: datetime) -> EnrolmentCa:
        """Make a CA whose key is never written down."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key=key, certificate=_self_signed(key, at), manufacturers=manufacturers)

    @classmethod
    def open(
        cls, directory: Path, *, manufacturers: Sequence[x509.Certificate], at: datetime
    ) -> EnrolmentCa:
        """Find the CA in `directory` (mode 0700, key 0600), or make it there.

        A CA whose certificate is about to end is replaced; clients must then pin the new one.

        Raises:
            ConfigurationError: the files there are no CA (code ``enrolment.state``).
        """
        path = directory / "enrolment-ca.key"
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            stored = b""
        if stored:
            key, certificate = _load(stored, path)
            if at + AK_LIFETIME < certificate.not_valid_after_utc:
                return cls(key=key, certificate=certificate, manufacturers=manufacturers)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, at)
        _store(path, key, certificate)
        return cls(key=key, certificate=certificate, manufacturers=manufacturers)

    def challenge(
        self,
        *,
        ek_certificate: bytes,
        intermediates: Sequence[x509.Certificate] = (),
        ak_public: bytes,
        at: datetime,
    ) -> Challenge:
        """Check steps 1 and 2 and seal the secret of step 3.

        `ek_certificate` is DER, possibly with trailing zeros as TPMs store it; `ak_public` a
        ``TPMT_PUBLIC``.

        Raises:
            AuthenticationError: codes ``enrolment.ek_certificate``, ``enrolment.ek_chain``,
                ``enrolment.ak_attributes``, ``enrolment.ak_type``, ``enrolment.busy``.
        """
        endorsement_key = self._endorsement_key(ek_certificate, intermediates, at)
        area = _attestation_key_area(ak_public)
        secret = self._random_bytes(SECRET_BYTES)
        identifier = self._random_bytes(16).hex()
        self._pending = {name: entry for name, entry in self._pending.items() if entry.expires > at}
        if len(self._pending) >= MAX_PENDING:
            raise AuthenticationError("too many keys wait to be certified", code="enrolment.busy")
        self._pending[identifier] = _Pending(
            public_key=_public_key(area), secret=secret, expires=at + ANSWER_WITHIN
        )
        sealed = make_credential(
            endorsement_key, area.name, secret, random_bytes=self._random_bytes
        )
        return Challenge(id=identifier, sealed=sealed)

    def certify(self, challenge_id: str, answer: bytes, *, at: datetime) -> x509.Certificate:
        """Check step 3 and certify the key. A challenge can be answered once.

        Raises:
            AuthenticationError: code ``enrolment.activation``.
        """
        pending = self._pending.pop(challenge_id, None)
        if (
            pending is None
            or pending.expires <= at
            or not hmac.compare_digest(pending.secret, answer)
        ):
            raise AuthenticationError(
                "the TPM did not show that it holds the attestation key",
                code="enrolment.activation",
            )
        self._certified.add(_spki(pending.public_key))
        return self._issue(pending.public_key, at)

    def renew(self, certificate: x509.Certificate, *, at: datetime) -> x509.Certificate:
        """Certify again a key that this object certified, for another `AK_LIFETIME`.

        Sound because the key cannot have left the TPM that it was seen in.

        Raises:
            AuthenticationError: it never did (code ``enrolment.unknown_key``).
        """
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or _spki(key) not in self._certified:
            raise AuthenticationError(
                "this CA has not seen the key in a TPM", code="enrolment.unknown_key"
            )
        return self._issue(key, at)

    def _endorsement_key(
        self, data: bytes, intermediates: Sequence[x509.Certificate], at: datetime
    ) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        certificate = _parse_ek_certificate(data)
        _require_ek_purpose(certificate)
        _require_chain(certificate, intermediates, self._manufacturers, at)
        try:
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise AuthenticationError(
                "the endorsement key is neither RSA nor ECC", code="enrolment.ek_certificate"
            )
        return key

    def _issue(self, key: ec.EllipticCurvePublicKey, at: datetime) -> x509.Certificate:
        ends = min(at + AK_LIFETIME, self.certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_name("Cloister attestation key"))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(int.from_bytes(self._random_bytes(16), "big") | 1)
            .not_valid_before(at - BACKDATED)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([TCG_KP_AIK_CERTIFICATE]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _attestation_key_area(ak_public: bytes) -> PublicArea:
    try:
        area = parse_public(ak_public)
    except MalformedError as error:
        raise AuthenticationError(str(error), code="enrolment.ak_type") from None
    if (
        not isinstance(area.key, EccPublic)
        or area.key.curve != Curve.NIST_P256
        or area.name_algorithm != Alg.SHA256
        or (area.scheme, area.scheme_hash) != (Alg.ECDSA, Alg.SHA256)
    ):
        raise AuthenticationError(
            "the attestation key does not sign with ECDSA and SHA-256 on P-256",
            code="enrolment.ak_type",
        )
    missing, excess = REQUIRED & ~area.attributes, FORBIDDEN & area.attributes
    if missing or excess:
        names = ", ".join(str(flag.name) for flag in ObjectAttribute if flag & (missing | excess))
        raise AuthenticationError(
            f"the attestation key lacks, or has against the rules: {names}",
            code="enrolment.ak_attributes",
        )
    return area


def _public_key(area: PublicArea) -> ec.EllipticCurvePublicKey:
    if not isinstance(area.key, EccPublic):
        raise TypeError("checked before: the key is ECC")
    x, y = int.from_bytes(area.key.x, "big"), int.from_bytes(area.key.y, "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError:
        raise AuthenticationError(
            "the attestation key is no point of P-256", code="enrolment.ak_type"
        ) from None


def _parse_ek_certificate(data: bytes) -> x509.Certificate:
    try:
        return parse_certificate(_strip_padding(data))
    except MalformedError:
        raise AuthenticationError(
            "the certificate of the TPM's endorsement key does not decode",
            code="enrolment.ek_certificate",
        ) from None


def _strip_padding(data: bytes) -> bytes:
    """Cut what a TPM stores behind the certificate, which says itself how long it is."""
    if data[:2] == b"\x30\x82" and len(data) >= 4:
        return data[: 4 + int.from_bytes(data[2:4], "big")]
    return data


def _require_ek_purpose(certificate: x509.Certificate) -> None:
    extensions = certificate.extensions
    try:
        usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        usages, constraints = [], None
    if TCG_KP_EK_CERTIFICATE not in usages or constraints is None or constraints.ca:
        raise AuthenticationError(
            "the certificate was not issued for an endorsement key",
            code="enrolment.ek_certificate",
        )


def _require_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
) -> None:
    """Follow issuers from `leaf` to one of `roots` (RFC 5280 section 6.1, without revocation).

    By hand: TCG's critical alternative names and directory attributes are not what web PKI
    validators expect. A root ends the chain by being equal to a pinned certificate.
    """
    current = leaf
    for below in range(MAX_INTERMEDIATES + 1):
        _require_current(current, at)
        for issuer in (*roots, *intermediates):
            if _issued(issuer, current, below):
                break
        else:
            break
        current = issuer
        if issuer in roots:
            _require_current(issuer, at)
            return
    raise AuthenticationError(
        "the endorsement key's certificate does not chain to a TPM manufacturer that this"
        " enrolment CA pins",
        code="enrolment.ek_chain",
    )


def _issued(issuer: x509.Certificate, subject: x509.Certificate, below: int) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    long_enough = constraints.path_length is None or constraints.path_length >= below
    return constraints.ca and usage.key_cert_sign and long_enough


def _require_current(certificate: x509.Certificate, at: datetime) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise AuthenticationError(
            "a certificate of the TPM's manufacturer is not valid at this time",
            code="enrolment.ek_chain",
        )


def _self_signed(key: ec.EllipticCurvePrivateKey, at: datetime) -> x509.Certificate:
    public = key.public_key()
    # The name carries the key, so that two CAs are never taken for one another.
    digest = x509.SubjectKeyIdentifier.from_public_key(public)
    name = _name(f"Cloister enrolment CA {digest.digest.hex()[:16]}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign=False), critical=True)
        .add_extension(digest, critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=not sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _load(stored: bytes, path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(stored, password=None)
        certificate = x509.load_pem_x509_certificate(stored)
    except (ValueError, TypeError):
        key, certificate = None, None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or certificate is None
        or certificate.public_key() != key.public_key()
    ):
        raise ConfigurationError(
            f"{path} does not hold an enrolment CA; remove it to make a new one",
            code="enrolment.state",
        )
    return key, certificate


def _store(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    # Key and certificate in one file, moved into place: never one without the other.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    fresh.replace(path)
