"""Roots of trust that the relying party pinned itself; never taken from a report."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import ConfigurationError

MAX_ROOTS: Final = 64


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
