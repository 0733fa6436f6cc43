"""Endorsements as they travel: what was asked for, the bytes that came, and from where.

An artefact is kept exactly as its publisher signed it. Nothing here is authenticated: that a
cache or a bundle holds an artefact says nothing about it, and whoever uses one checks its
signature, chain and dates as if it had come with the evidence.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.certificates import parse_certificates
from cloister.errors import ConfigurationError
from cloister.evidence.snp import Product, tcb_components

MAX_ISSUER_CHAIN_BYTES: Final = 16 * 1024
MAX_KEY_CHARACTERS: Final = 512


class ArtefactKind(enum.StrEnum):
    """What an artefact is. Each kind has keys of its own form; see the functions below."""

    AMD_VCEK = "amd.vcek"
    """Certificate of one chip's key at one TCB (AMD 57230), DER."""
    AMD_VCEK_CHAIN = "amd.vcek_chain"
    """ASK and ARK of a product line, PEM."""
    AMD_VLEK_CHAIN = "amd.vlek_chain"
    """ASVK and ARK of a product line, PEM."""
    AMD_CRL = "amd.crl"
    """Revocation list that the ARK of a product line signs, DER."""
    INTEL_TCB_INFO = "intel.tcb_info"
    """``{"tcbInfo": …, "signature": …}`` for one FMSPC, as the service sent it."""
    INTEL_QE_IDENTITY = "intel.qe_identity"
    """``{"enclaveIdentity": …, "signature": …}`` of the quoting enclave."""
    INTEL_PCK_CRL = "intel.pck_crl"
    """Revocation list of the PCK Platform or Processor CA, DER."""
    INTEL_ROOT_CRL = "intel.root_crl"
    """Revocation list of the Intel SGX root CA, DER."""
    NVIDIA_RIM = "nvidia.rim"
    """Reference integrity manifest, XML with an XML signature inside."""
    NVIDIA_OCSP = "nvidia.ocsp"
    """OCSP response (RFC 6960) about one certificate, DER."""
    AZURE_AK_INTERMEDIATE = "azure.ak_intermediate"
    """CA certificate above a vTPM's attestation key, DER."""
    GCP_AK_INTERMEDIATE = "gcp.ak_intermediate"
    """CA certificate above a vTPM's attestation key, DER."""


MAX_BYTES: Final[dict[ArtefactKind, int]] = {
    ArtefactKind.AMD_VCEK: 8 * 1024,
    ArtefactKind.AMD_VCEK_CHAIN: 32 * 1024,
    ArtefactKind.AMD_VLEK_CHAIN: 32 * 1024,
    ArtefactKind.AMD_CRL: 512 * 1024,
    ArtefactKind.INTEL_TCB_INFO: 256 * 1024,
    ArtefactKind.INTEL_QE_IDENTITY: 64 * 1024,
    ArtefactKind.INTEL_PCK_CRL: 2 * 1024 * 1024,
    ArtefactKind.INTEL_ROOT_CRL: 256 * 1024,
    ArtefactKind.NVIDIA_RIM: 2 * 1024 * 1024,
    ArtefactKind.NVIDIA_OCSP: 32 * 1024,
    ArtefactKind.AZURE_AK_INTERMEDIATE: 16 * 1024,
    ArtefactKind.GCP_AK_INTERMEDIATE: 16 * 1024,
}
"""Roughly ten times what each is today: room to grow, and no room for an endless answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactRequest:
    """One artefact, named so that two requests for the same thing are equal."""

    kind: ArtefactKind
    key: str
    material: tuple[bytes, ...] = field(default=(), compare=False, repr=False)
    """What the question itself needs: for OCSP the certificate and its issuer, in DER."""

    def __post_init__(self) -> None:
        if not _KEYS[self.kind].fullmatch(self.key) or len(self.key) > MAX_KEY_CHARACTERS:
            raise ConfigurationError(
                f"{self.key[:80]!r} names no {self.kind}", code="endorsement.key"
            )

    @property
    def identity(self) -> str:
        """64 hex characters that stand for kind and key, as a file name."""
        return hashlib.sha256(f"{self.kind}\0{self.key}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """The bytes that answered a request.

    ``issued_at``, ``valid_until`` and ``number`` are what the artefact says of itself
    (`cloister.endorsements.contents` reads them).
    """

    kind: ArtefactKind
    key: str
    data: bytes
    issuer_chain: bytes = b""
    """PEM of the certificates that came in a header of the answer, leaf first. For OCSP: the
    certificate asked about, and its issuer. For an AK's: the CAs above it."""
    source: str
    """Address that it was fetched from, or the name of a file."""
    fetched_at: datetime
    issued_at: datetime
    valid_until: datetime | None
    number: int | None = None
    """Intel's TCB evaluation data number, or the CRL number: grows with each issue."""

    @property
    def sha256(self) -> str:
        """Of `data`, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def request(self) -> ArtefactRequest:
        """What this answers."""
        material: tuple[bytes, ...] = ()
        if self.kind is ArtefactKind.NVIDIA_OCSP and self.issuer_chain:
            certificates = parse_certificates(self.issuer_chain)
            material = tuple(one.public_bytes(Encoding.DER) for one in certificates)
        return ArtefactRequest(kind=self.kind, key=self.key, material=material)


def amd_vcek(product: Product, chip_id: bytes, tcb: bytes) -> ArtefactRequest:
    """The VCEK of a chip at a TCB (AMD 57230 section 4.1).

    `chip_id` is CHIP_ID of a report, 64 bytes, of which Turin uses the first 8; `tcb` is a
    TCB_VERSION of 8 bytes, REPORTED_TCB of a report.
    """
    levels = tcb_components(tcb, product)
    names = [one for one in _SPL_NAMES if one in levels]
    query = "&".join(f"{_SPL_NAMES[name]}={levels[name]:02d}" for name in names)
    chip = chip_id[: 8 if product is Product.TURIN else 64].hex()
    return ArtefactRequest(kind=ArtefactKind.AMD_VCEK, key=f"{product.label}/{chip}?{query}")


def amd_chain(product: Product, *, vlek: bool = False) -> ArtefactRequest:
    """The CA certificates of a product line."""
    kind = ArtefactKind.AMD_VLEK_CHAIN if vlek else ArtefactKind.AMD_VCEK_CHAIN
    return ArtefactRequest(kind=kind, key=product.label)


def amd_crl(product: Product, *, vlek: bool = False) -> ArtefactRequest:
    """What the root key of a product line revoked: the ASK, or with `vlek` the ASVK."""
    return ArtefactRequest(
        kind=ArtefactKind.AMD_CRL, key=f"{product.label}/{'vlek' if vlek else 'vcek'}"
    )


def intel_tcb_info(tee: str, fmspc: bytes, *, early: bool = False) -> ArtefactRequest:
    """TCB levels of a platform family; `tee` is ``sgx`` or ``tdx``, `fmspc` 6 bytes.

    Intel publishes a new set `early`, and months later makes it the standard one.
    """
    return ArtefactRequest(
        kind=ArtefactKind.INTEL_TCB_INFO, key=f"{tee}/{fmspc.hex()}/{_update(early=early)}"
    )


def intel_qe_identity(tee: str, *, early: bool = False) -> ArtefactRequest:
    """Identity of the quoting enclave for `tee`, ``sgx`` or ``tdx``."""
    return ArtefactRequest(kind=ArtefactKind.INTEL_QE_IDENTITY, key=f"{tee}/{_update(early=early)}")


def intel_pck_crl(ca: str) -> ArtefactRequest:
    """What the ``platform`` or the ``processor`` CA revoked."""
    return ArtefactRequest(kind=ArtefactKind.INTEL_PCK_CRL, key=ca)


def intel_root_crl() -> ArtefactRequest:
    """What the Intel SGX root CA revoked."""
    return ArtefactRequest(kind=ArtefactKind.INTEL_ROOT_CRL, key="root")


def nvidia_rim(rim_id: str) -> ArtefactRequest:
    """A manifest by its id, such as ``NV_GPU_DRIVER_GH100_550.144.03``."""
    return ArtefactRequest(kind=ArtefactKind.NVIDIA_RIM, key=rim_id)


def nvidia_ocsp(certificate: x509.Certificate, issuer: x509.Certificate) -> ArtefactRequest:
    """The status of one certificate of a device chain or of a manifest's signer."""
    material = tuple(one.public_bytes(Encoding.DER) for one in (certificate, issuer))
    return ArtefactRequest(
        kind=ArtefactKind.NVIDIA_OCSP,
        key=hashlib.sha256(material[0]).hexdigest(),
        material=material,
    )


def ak_intermediate(url: str, *, azure: bool) -> ArtefactRequest:
    """The CA certificate that an AK certificate's authority information access names."""
    kind = ArtefactKind.AZURE_AK_INTERMEDIATE if azure else ArtefactKind.GCP_AK_INTERMEDIATE
    return ArtefactRequest(kind=kind, key=url)


def _update(*, early: bool) -> str:
    return "early" if early else "standard"


_SPL_NAMES: Final = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
"""The service's names for the parts of a TCB, in the order of its addresses."""
_SPL: Final = r"=(?:0[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_SPLS: Final = f"blSPL{_SPL}&teeSPL{_SPL}&snpSPL{_SPL}&ucodeSPL{_SPL}"
_PRODUCT: Final = "(?:Milan|Genoa|Turin)"
_AIA: Final = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?/[A-Za-z0-9._~%/-]+")
_KEYS: Final[dict[ArtefactKind, re.Pattern[str]]] = {
    ArtefactKind.AMD_VCEK: re.compile(
        rf"(?:(?:Milan|Genoa)/[0-9a-f]{{128}}\?|Turin/[0-9a-f]{{16}}\?fmcSPL{_SPL}&){_SPLS}"
    ),
    ArtefactKind.AMD_VCEK_CHAIN: re.compile(_PRODUCT),
    ArtefactKind.AMD_VLEK_CHAIN: re.compile(_PRODUCT),
    ArtefactKind.AMD_CRL: re.compile(f"{_PRODUCT}/(?:vcek|vlek)"),
    ArtefactKind.INTEL_TCB_INFO: re.compile("(?:sgx|tdx)/[0-9a-f]{12}/(?:standard|early)"),
    ArtefactKind.INTEL_QE_IDENTITY: re.compile("(?:sgx|tdx)/(?:standard|early)"),
    ArtefactKind.INTEL_PCK_CRL: re.compile("platform|processor"),
    ArtefactKind.INTEL_ROOT_CRL: re.compile("root"),
    ArtefactKind.NVIDIA_RIM: re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"),
    ArtefactKind.NVIDIA_OCSP: re.compile("[0-9a-f]{64}"),
    ArtefactKind.AZURE_AK_INTERMEDIATE: _AIA,
    ArtefactKind.GCP_AK_INTERMEDIATE: _AIA,
}
"""A key becomes part of an address and of messages, so its form is fixed here."""
