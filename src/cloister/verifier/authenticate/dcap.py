"""Authenticates a DCAP quote: from Intel's root down to the report of a guest or enclave.

Steps, in the order of the claims; each name begins with ``tdx.`` or ``sgx.``:

1. ``parse``: the bytes are a quote of the kind expected (the caller's step).
2. ``quote_signature``: the attestation key signed header and body.
3. ``ak_binding``: the quoting enclave's report carries the digest of that key.
4. ``qe_report_signature``: the platform's certified key (PCK) signed that report.
5. ``pck_chain``: that key's certificate is one that Intel's pinned root leads to, for a platform.

Source: Intel "TDX DCAP Quoting Library API", appendix A.4 (version 4); the order of checks is
that of Intel's quote verification library. Not decided here: whether anything was revoked, and
whether the quoting enclave is Intel's and up to date; both take collateral
(`cloister.verifier.authenticate.intel_collateral`, `cloister.verifier.appraise.intel_tcb`).
Without any, `check_quoting_enclave` compares with values known for years.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from cloister.endorsements.authorities import parse_authority
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.intel import PckExtensions, parse_pck_extensions
from cloister.endorsements.roots import Roots, Vendor, name_of
from cloister.errors import MalformedError
from cloister.evidence.dcap import Quote
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, ChainFault, authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

PARSE: Final = "parse"
QUOTE_SIGNATURE: Final = "quote_signature"
AK_BINDING: Final = "ak_binding"
QE_REPORT_SIGNATURE: Final = "qe_report_signature"
PCK_CHAIN: Final = "pck_chain"
QUOTING_ENCLAVE: Final = "quoting_enclave"

PCK_NAME: Final = "Intel SGX PCK Certificate"
PCK_CA_NAMES: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
PCK_CHAIN_LENGTH: Final = 3
"""Leaf, one CA, root: Intel's root signs other things besides, such as collateral."""

QUOTING_ENCLAVES: Final = {
    "sgx": ("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff", 1),
    "tdx": ("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5", 2),
}
"""MRSIGNER and ISVPRODID of Intel's quoting enclaves, as in every QE identity that Intel
published for SGX and for TDX."""

_P256: Final = ec.SECP256R1()
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


def quote_claims(prefix: str) -> tuple[str, ...]:
    """Names of the claims that every quote leads to, in order."""
    return tuple(
        prefix + name
        for name in (PARSE, QUOTE_SIGNATURE, AK_BINDING, QE_REPORT_SIGNATURE, PCK_CHAIN)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PckReading:
    """The certificate that vouches for a platform's key, and where it leads.

    Something is in here even if nothing holds, so that a result can say what was there.
    """

    chain: Chain | None
    """``None`` where there is no certificate, or one does not decode."""
    extensions: PckExtensions | None
    """What the certificate says about the platform, as far as that decodes."""
    fault: tuple[str, str] | None
    """Code and sentence of what is wrong, dates apart."""

    @property
    def expired(self) -> str | None:
        """The sentence about a certificate outside its dates."""
        fault = None if self.chain is None else self.chain.fault(ChainFault.EXPIRED)
        return None if fault is None else fault[1]

    @property
    def development(self) -> bool:
        """Whether it leads to the root of a simulated vendor."""
        anchor = None if self.chain is None else self.chain.anchor
        return anchor is not None and anchor.development


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote that leads to a pinned root, with what its platform's certificate says."""

    quote: Quote
    chain: tuple[x509.Certificate, ...]
    pck: PckExtensions


def read_pck(
    quote: Quote, certificates: Iterable[bytes], *, roots: Roots, at: datetime
) -> PckReading:
    """Lead the first certificate in the quote to a pinned root of Intel's.

    `certificates` (DER) came beside the quote; where the quote only names its platform, the
    first of them is taken for the platform's. A root among them is worth nothing.
    """
    given = (*quote.certification.certificates, *certificates)
    if not given:
        kind = quote.certification.type.name
        sentence = f"The quote brings no certificate of its platform's key, but {kind} only."
        return PckReading(chain=None, extensions=None, fault=("endorsements_missing", sentence))
    try:
        leaf = parse_certificate(given[0])
        others = tuple(map(parse_authority, given[1:]))
    except MalformedError as error:
        return PckReading(
            chain=None, extensions=None, fault=(ChainFault.BAD_CHAIN, f"Refused: {error}.")
        )
    anchors = roots.vendor(Vendor.INTEL)
    chain = authenticate_chain(leaf, others, anchors=anchors, at=at)
    if chain.anchor is None:
        # Quotes bring the whole chain, so that this is rarely needed.
        chain = authenticate_chain(leaf, (*others, *roots.intermediates), anchors=anchors, at=at)
    try:
        extensions = parse_pck_extensions(leaf)
    except MalformedError as error:
        fault = (ChainFault.BAD_CHAIN, f"The platform's certificate is refused: {error}.")
        return PckReading(chain=chain, extensions=None, fault=chain_fault(chain) or fault)
    return PckReading(chain=chain, extensions=extensions, fault=chain_fault(chain))


def chain_fault(chain: Chain) -> tuple[str, str] | None:
    """What keeps `chain` from being that of a platform's key, dates apart."""
    fault = chain.fault(ChainFault.BAD_CHAIN)
    if fault is not None:
        return fault
    leaf, authority = chain.certificates[0], chain.certificates[1]
    if len(chain.certificates) != PCK_CHAIN_LENGTH or _common_name(authority) not in PCK_CA_NAMES:
        return ChainFault.BAD_CHAIN, f"{name_of(authority)!r} does not certify platforms."
    if _common_name(leaf) != PCK_NAME or not _may_sign_data(leaf):
        return ChainFault.BAD_CHAIN, f"{name_of(leaf)!r} is not the certificate of a platform."
    return None


def authenticate_quote(
    quote: Quote, pck: PckReading, *, ledger: Ledger, prefix: str
) -> Authenticated[SignedQuote] | None:
    """Take steps 2 to 5, adding their claims to `ledger`.

    Returns ``None`` unless all of them hold and every certificate is within its dates.
    """
    _quote_signature(quote, ledger, prefix)
    _ak_binding(quote, ledger, prefix)
    _qe_report_signature(quote, pck, ledger, prefix)
    _pck_chain(pck, ledger, prefix)
    steps = (QUOTE_SIGNATURE, AK_BINDING, QE_REPORT_SIGNATURE, PCK_CHAIN)
    if pck.chain is None or pck.extensions is None or not pck.chain.holds:
        return None
    if not ledger.holds(*(prefix + step for step in steps)):
        return None
    return _grant(SignedQuote(quote=quote, chain=pck.chain.certificates, pck=pck.extensions))


def check_quoting_enclave(quote: Quote, *, ledger: Ledger, prefix: str) -> None:
    """Without collateral: the claim that Intel's quoting enclave vouches for the key.

    Any enclave that may derive provisioning keys could have the platform sign a report. Its
    version is not judged: which ones are current, only collateral says.
    """
    mrsigner, product = QUOTING_ENCLAVES[quote.tee]
    found = quote.qe_report
    ledger.check(
        prefix + QUOTING_ENCLAVE,
        holds=found.mrsigner.hex() == mrsigner and found.isvprodid == product and not found.debug,
        affirmed="The quoting enclave is Intel's, in a version about which nothing is known.",
        code="qe_identity_mismatch",
        refused="The enclave that vouches for the attestation key is not Intel's quoting enclave.",
        source=Source.HARDWARE_PROVEN,
    )


def _quote_signature(quote: Quote, ledger: Ledger, prefix: str) -> None:
    """Step 2. A key that is no point on the curve has signed nothing."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_P256, b"\x04" + quote.attestation_key)
    except ValueError:
        key = None
    ledger.check(
        prefix + QUOTE_SIGNATURE,
        holds=key is not None and _signed(key, quote.signature, quote.signed),
        affirmed="The attestation key signed exactly this report.",
        code="bad_signature",
        refused="The quote was not signed by its attestation key, or was changed since.",
        source=Source.HARDWARE_PROVEN,
    )


def _ak_binding(quote: Quote, ledger: Ledger, prefix: str) -> None:
    """Step 3: report data is SHA-256(key || authentication data), then 32 zero bytes."""
    digest = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    ledger.check(
        prefix + AK_BINDING,
        holds=hmac.compare_digest(quote.qe_report.report_data, digest + bytes(32)),
        affirmed="The quoting enclave vouches for the attestation key.",
        code="bad_ak_binding",
        refused="The quoting enclave vouches for another attestation key.",
        source=Source.HARDWARE_PROVEN,
    )


def _qe_report_signature(quote: Quote, pck: PckReading, ledger: Ledger, prefix: str) -> None:
    """Step 4. Says nothing of whose key it is."""
    if pck.chain is None:
        return
    try:
        key = pck.chain.leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    ledger.check(
        prefix + QE_REPORT_SIGNATURE,
        holds=isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP256R1)
        and _signed(key, quote.qe_report_signature, quote.qe_report.raw),
        affirmed="The key in the platform's certificate signed the quoting enclave's report.",
        code="bad_signature",
        refused="The quoting enclave's report was not signed by the key in the platform's"
        " certificate.",
        source=Source.HARDWARE_PROVEN,
    )


def _pck_chain(pck: PckReading, ledger: Ledger, prefix: str) -> None:
    """Step 5."""
    if pck.fault is not None:
        ledger.refuse(prefix + PCK_CHAIN, *pck.fault)
    else:
        ledger.affirm(
            prefix + PCK_CHAIN, "The platform's key is certified by the Intel root that is pinned."
        )


def _signed(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _common_name(certificate: x509.Certificate) -> str | None:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _may_sign_data(leaf: x509.Certificate) -> bool:
    """Not a CA, and its key is for signatures."""
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return False
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            return False
    return True
