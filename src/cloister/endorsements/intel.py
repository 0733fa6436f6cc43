"""Intel's collateral for SGX and TDX quotes: what vouches for a platform, as bytes and as records.

Source: Intel "Provisioning Certification Service" API version 4: TCB Info, Enclave Identity,
revocation lists, and the issuer chains that come in headers beside them. As one document it is
JSON with the members of the structure ``sgx_ql_qve_collateral_t`` (version 3): PEM chains and
signed texts as strings, revocation lists (DER) and signatures (r ‖ s, 64 bytes) in hexadecimal.
Nothing here is authenticated (`cloister.verifier.authenticate.intel_collateral` does that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography import x509

from cloister.endorsements import certificates
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.intel_pck import PckExtensions, parse_pck_extensions
from cloister.endorsements.intel_tcb_info import (
    IsvLevel,
    QeIdentity,
    TcbComponent,
    TcbInfo,
    TcbLevel,
    TdxModule,
    TdxModuleIdentity,
    parse_qe_identity,
    parse_tcb_info,
)
from cloister.errors import MalformedError
from cloister.evidence.dcap import parse_pem_certificates
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_keys,
    expect_str,
    parse_json_object,
)

MAX_COLLATERAL_BYTES: Final = 2 * 1024 * 1024
MAX_CHAIN_BYTES: Final = 32 * 1024
MAX_CHAIN: Final = 4
"""Certificates in an issuer chain; Intel sends two: the signer and the root."""
MAX_CRL_BYTES: Final = 256 * 1024
"""Longest revocation list; the longest of 2026 has 3.3 KiB."""
MAX_TEXT_BYTES: Final = 256 * 1024
SIGNATURE_BYTES: Final = 64

_REQUIRED: Final = frozenset(
    {
        "pck_crl_issuer_chain",
        "root_ca_crl",
        "pck_crl",
        "tcb_info_issuer_chain",
        "tcb_info",
        "tcb_info_signature",
        "qe_identity_issuer_chain",
        "qe_identity",
        "qe_identity_signature",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """The members of one set of collateral, as they arrived."""

    pck_crl_issuer_chain: bytes
    """PEM: the CA that issued the platform's PCK certificate, and the root."""
    root_ca_crl: bytes
    """DER."""
    pck_crl: bytes
    """DER."""
    tcb_info_issuer_chain: bytes
    """PEM: the TCB signing certificate, and the root."""
    tcb_info: bytes
    """The exact text that was signed: the inner object of the service's answer, UTF-8."""
    tcb_info_signature: bytes
    """64 bytes: r ‖ s, big-endian."""
    qe_identity_issuer_chain: bytes
    qe_identity: bytes
    qe_identity_signature: bytes
    pck_certificate_chain: bytes | None = None
    """PEM, for quotes that do not carry their own."""

    def encode(self) -> bytes:
        """The collateral as one JSON document, which `parse_collateral` reads."""
        members: JsonObject = {
            "pck_crl_issuer_chain": self.pck_crl_issuer_chain.decode(),
            "root_ca_crl": self.root_ca_crl.hex(),
            "pck_crl": self.pck_crl.hex(),
            "tcb_info_issuer_chain": self.tcb_info_issuer_chain.decode(),
            "tcb_info": self.tcb_info.decode(),
            "tcb_info_signature": self.tcb_info_signature.hex(),
            "qe_identity_issuer_chain": self.qe_identity_issuer_chain.decode(),
            "qe_identity": self.qe_identity.decode(),
            "qe_identity_signature": self.qe_identity_signature.hex(),
        }
        if self.pck_certificate_chain is not None:
            members["pck_certificate_chain"] = self.pck_certificate_chain.decode()
        return canonical(members)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelCollateral:
    """A set of collateral with every member decoded, and nothing authenticated."""

    raw: Collateral = field(repr=False)
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    pck_crl: x509.CertificateRevocationList
    root_crl: x509.CertificateRevocationList
    tcb_info_chain: tuple[x509.Certificate, ...]
    """The signer first; at least one certificate."""
    qe_identity_chain: tuple[x509.Certificate, ...]
    pck_crl_chain: tuple[x509.Certificate, ...]


def parse_collateral(data: bytes) -> Collateral:
    """Decode one JSON document with a set of collateral; the members stay bytes.

    Raises MalformedError, and nothing else.
    """
    members = parse_json_object(data, limit=MAX_COLLATERAL_BYTES, what="the collateral")
    expect_keys(members, "the collateral", required=_REQUIRED, optional={"pck_certificate_chain"})
    chain = members.get("pck_certificate_chain")
    return Collateral(
        pck_crl_issuer_chain=_text(members, "pck_crl_issuer_chain", MAX_CHAIN_BYTES),
        root_ca_crl=_hex(members, "root_ca_crl"),
        pck_crl=_hex(members, "pck_crl"),
        tcb_info_issuer_chain=_text(members, "tcb_info_issuer_chain", MAX_CHAIN_BYTES),
        tcb_info=_text(members, "tcb_info", MAX_TEXT_BYTES),
        tcb_info_signature=_hex(members, "tcb_info_signature", SIGNATURE_BYTES),
        qe_identity_issuer_chain=_text(members, "qe_identity_issuer_chain", MAX_CHAIN_BYTES),
        qe_identity=_text(members, "qe_identity", MAX_TEXT_BYTES),
        qe_identity_signature=_hex(members, "qe_identity_signature", SIGNATURE_BYTES),
        pck_certificate_chain=(
            None if chain is None else _text(members, "pck_certificate_chain", MAX_CHAIN_BYTES)
        ),
    )


def parse_members(collateral: Collateral) -> IntelCollateral:
    """Decode every member of `collateral`; nothing is authenticated, and no date compared.

    Raises MalformedError, and nothing else.
    """
    known: dict[bytes, x509.Certificate] = {}
    return IntelCollateral(
        raw=collateral,
        tcb_info=parse_tcb_info(collateral.tcb_info),
        qe_identity=parse_qe_identity(collateral.qe_identity),
        pck_crl=parse_crl(collateral.pck_crl),
        root_crl=parse_crl(collateral.root_ca_crl),
        tcb_info_chain=_chain(collateral.tcb_info_issuer_chain, known),
        qe_identity_chain=_chain(collateral.qe_identity_issuer_chain, known),
        pck_crl_chain=_chain(collateral.pck_crl_issuer_chain, known),
    )


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Decode one revocation list, of no more bytes than Intel's may have.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_CRL_BYTES:
        raise MalformedError("a revocation list is longer than is accepted")
    return certificates.parse_crl(data)


def parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Decode an issuer chain, at least one certificate in PEM, the signer first.

    Raises MalformedError, and nothing else.
    """
    return _chain(pem, {})


def _chain(pem: bytes, known: dict[bytes, x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """As `parse_chain`; decodes a certificate once that is in several chains, as the root is."""
    if len(pem) > MAX_CHAIN_BYTES:
        raise MalformedError("an issuer chain is longer than is accepted")
    ders = parse_pem_certificates(pem, limit=MAX_CHAIN)
    for der in ders:
        if der not in known:
            known[der] = parse_certificate(der)
    return tuple(known[der] for der in ders)


def _text(members: JsonObject, name: str, limit: int) -> bytes:
    return expect_str(members.get(name), name, limit=limit).encode()


def _hex(members: JsonObject, name: str, size: int | None = None) -> bytes:
    value: Json = members.get(name)
    return expect_hex(value, name, size=size, limit=MAX_CRL_BYTES)


__all__ = [
    "Collateral",
    "IntelCollateral",
    "IsvLevel",
    "PckExtensions",
    "QeIdentity",
    "TcbComponent",
    "TcbInfo",
    "TcbLevel",
    "TdxModule",
    "TdxModuleIdentity",
    "parse_chain",
    "parse_collateral",
    "parse_crl",
    "parse_members",
    "parse_pck_extensions",
    "parse_qe_identity",
    "parse_tcb_info",
]
