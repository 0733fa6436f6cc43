"""Roots of trust that the relying party pinned itself; never taken from a report."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.errors import ConfigurationError

MAX_ROOTS: Final = 64

_ECDSA: Final = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_ORDERS: Final = tuple(
    int(order, 16)
    for order in (
        "FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551",
        (
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF"
            "581A0DB248B0A77AECEC196ACCC52973"
        ),
        (
            "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
            "FFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E9138"
            "6409"
        ),
    )
)
"""Orders of P-256, P-384 and P-521 (NIST SP 800-186 section 3.2.1)."""


class Vendor(enum.StrEnum):
    """Whose word a pinned root stands for, and about what."""

    AMD = "amd"
    """AMD root keys (ARK), one for each product line: SEV-SNP reports."""
    INTEL = "intel"
    """Intel SGX root CA: SGX and TDX quotes, and the collateral they are judged by."""
    AWS_NITRO = "aws_nitro"
    NVIDIA_DEVICE = "nvidia_device"
    """NVIDIA device identity root: reports of GPUs and NVSwitches."""
    NVIDIA_RIM = "nvidia_rim"
    """Root of the signers of NVIDIA's reference integrity manifests."""
    AZURE_VTPM = "azure_vtpm"
    GOOGLE_VTPM = "google_vtpm"
    TPM_MANUFACTURER = "tpm_manufacturer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One pinned root of a vendor."""

    vendor: Vendor
    certificate: x509.Certificate
    development: bool = False
    """Whether this is the root of a simulated vendor: what chains to it proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The certificates that evidence may chain to.

    Pinning an enrolment CA means to trust it to certify only keys that it saw live in a TPM
    whose endorsement certificate it checked. `cloister.endorsements.pinned` has the vendors'
    roots; `simulated vendors <cloister.testing>` have roots of their own, marked as development.
    """

    enrolment_cas: tuple[x509.Certificate, ...] = ()
    anchors: tuple[Anchor, ...] = ()
    intermediates: tuple[x509.Certificate, ...] = ()
    """Certificates that complete chains which evidence brings in part. Nothing is trusted on
    their account: each is checked like one that came with the evidence."""

    def vendor(self, *vendors: Vendor) -> tuple[Anchor, ...]:
        """The pinned roots of `vendors`."""
        return tuple(anchor for anchor in self.anchors if anchor.vendor in vendors)

    def merged(self, other: Roots) -> Roots:
        """Everything that either of the two pins."""
        return Roots(
            enrolment_cas=_once(self.enrolment_cas + other.enrolment_cas),
            anchors=tuple(dict.fromkeys(self.anchors + other.anchors)),
            intermediates=_once(self.intermediates + other.intermediates),
        )

    @classmethod
    def from_pem(cls, data: bytes) -> Roots:
        """Read one or more PEM certificates of enrolment CAs.

        Raises:
            ConfigurationError: no certificate in `data`, too many, or one that is no CA's.
        """
        try:
            certificates = tuple(x509.load_pem_x509_certificates(data))
        except ValueError:
            raise ConfigurationError(
                "the pinned roots are not PEM certificates", code="roots.malformed"
            ) from None
        if len(certificates) > MAX_ROOTS:
            raise ConfigurationError(f"more than {MAX_ROOTS} roots are pinned", code="roots.many")
        for certificate in certificates:
            if not _is_ca(certificate):
                raise ConfigurationError(
                    f"a pinned root is not the certificate of a CA: {name_of(certificate)}",
                    code="roots.not_a_ca",
                )
        return cls(enrolment_cas=certificates)

    @classmethod
    def load(cls, *paths: Path) -> Roots:
        """Read the PEM files at `paths`.

        Raises:
            ConfigurationError: a file cannot be read, or does not hold CA certificates.
        """
        try:
            data = b"\n".join(path.read_bytes() for path in paths)
        except OSError as error:
            raise ConfigurationError(
                f"a pinned root cannot be read: {error.filename}: {error.strerror}",
                code="roots.unreadable",
            ) from None
        return cls.from_pem(data)

    def to_pem(self) -> bytes:
        """The certificates as PEM, one after the other."""
        return b"".join(root.public_bytes(Encoding.PEM) for root in self.enrolment_cas)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """``sha256:<hex>`` of every certificate's DER, in order."""
        return tuple(fingerprint(root) for root in self.enrolment_cas)


def fingerprint(certificate: x509.Certificate) -> str:
    """``sha256:<hex>`` of the certificate's DER."""
    return "sha256:" + hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def fingerprints(certificate: x509.Certificate) -> frozenset[str]:
    """Every name under which this certificate may be on a list of digests.

    An ECDSA signature (r, s) holds as (r, n - s), too, and anyone can write the one for the
    other: the certificate says the same, its chain holds, and its digest is another. Whoever denies
    certificates by digest denies both. No other part of a certificate that is signed, and
    decodes, has two spellings: `cryptography` reads strict DER.
    """
    twins = (hashlib.sha256(der).hexdigest() for der in _twins(certificate))
    return frozenset({fingerprint(certificate), *(f"sha256:{digest}" for digest in twins)})


def _twins(certificate: x509.Certificate) -> Iterable[bytes]:
    """The certificate with s replaced, for each curve that its issuer's key may be on."""
    if certificate.signature_algorithm_oid not in _ECDSA:
        return
    signed = certificate.tbs_certificate_bytes
    rest = certificate.public_bytes(Encoding.DER).partition(signed)[2]
    algorithm = rest[: 2 + rest[1]]  # always of less than 128 bytes
    try:
        r, s = decode_dss_signature(certificate.signature)
    except ValueError:
        return
    for order in _ORDERS:
        if 0 < s < order:
            signature = b"\0" + encode_dss_signature(r, order - s)
            yield _der(0x30, signed + algorithm + _der(0x03, signature))


def _der(tag: int, content: bytes) -> bytes:
    """One DER value of a tag of one byte (X.690 section 8.1.3)."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def name_of(certificate: x509.Certificate) -> str:
    """The subject for people to read; an empty one reads ``(unnamed)``."""
    return certificate.subject.rfc4514_string() or "(unnamed)"


def _once(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(certificates))


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
