"""Authenticates an AWS Nitro attestation document: its signature and its certificate's chain.

Source: AWS, "Verifying the root of trust: Nitro Enclaves attestation process", section 3.2; the
signature is ES384 over the ``Sig_structure`` of RFC 9052 section 4.4. AWS' root is pinned, and
the copy of it that a document brings along counts for nothing.

Not checked: revocation. AWS tells verifiers to leave lists out; certificates of enclaves live for
three hours, those of instances for a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.endorsements.authorities import parse_authority
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.nitro import SIGNATURE_BYTES, NitroDocument, signed_bytes
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, ChainFault, authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

SIGNATURE: Final = "nitro.cose_signature"
CHAIN: Final = "nitro.chain"
TIME: Final = "nitro.time"
LEAF: Final = "nitro.leaf"

CLAIMS: Final = (SIGNATURE, CHAIN, TIME, LEAF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """What became of a document: only where `document` is set may it be believed."""

    document: Authenticated[NitroDocument] | None
    chain: Chain | None
    """As far as it was found; ``None`` where a certificate does not decode."""


def authenticate_nitro(
    document: NitroDocument, *, roots: Roots, at: datetime, ledger: Ledger
) -> Authentication:
    """Check `CLAIMS`: the key in the leaf certificate signed, and AWS vouches for it at `at`."""
    try:
        leaf = parse_certificate(document.certificate)
        bundle = [parse_authority(certificate) for certificate in document.cabundle]
    except MalformedError as error:
        ledger.refuse(CHAIN, error.code, f"The document's certificates do not decode: {error}.")
        return Authentication(document=None, chain=None)
    _signature(document, leaf, ledger)
    chain = authenticate_chain(
        leaf,
        (*bundle, *roots.intermediates),
        anchors=roots.vendor(Vendor.AWS_NITRO),
        at=at,
    )
    _chain(chain, ledger)
    _leaf(leaf, ledger)
    # Besides the claims: whatever else may be wrong with a chain has no claim here.
    authenticated = _grant(document) if ledger.holds(*CLAIMS) and chain.holds else None
    return Authentication(document=authenticated, chain=chain)


def _signature(document: NitroDocument, leaf: x509.Certificate, ledger: Ledger) -> None:
    ledger.check(
        SIGNATURE,
        holds=_signed(document, leaf),
        affirmed="The key in the document's certificate signed it.",
        code="bad_signature",
        refused="The document was not signed by the key in its certificate.",
        source=Source.HARDWARE_PROVEN,
    )


def _signed(document: NitroDocument, leaf: x509.Certificate) -> bool:
    key = _p384(leaf)
    if key is None:
        return False
    half = SIGNATURE_BYTES // 2
    r, s = document.signature[:half], document.signature[half:]
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        key.verify(signature, signed_bytes(document), ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


def _p384(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return None
    return key


def _chain(chain: Chain, ledger: Ledger) -> None:
    bad = chain.fault(ChainFault.BAD_CHAIN)
    ledger.check(
        CHAIN,
        holds=bad is None,
        affirmed="The document's certificate leads to the pinned root of AWS Nitro.",
        code=ChainFault.BAD_CHAIN,
        refused=bad[1] if bad else "",
    )
    late = chain.fault(ChainFault.EXPIRED)
    ledger.check(
        TIME,
        holds=late is None,
        affirmed="No certificate that was followed is outside its dates.",
        code=ChainFault.EXPIRED,
        refused=late[1] if late else "",
    )


def _leaf(leaf: x509.Certificate, ledger: Ledger) -> None:
    ledger.check(
        LEAF,
        holds=_p384(leaf) is not None and _only_signs(leaf),
        affirmed="The document's certificate is for signing, with a key on P-384, and no CA's.",
        code="bad_leaf",
        refused=(
            "The document's certificate is not one for signing alone with a key on P-384: it is"
            " a CA's, its key usage lacks digitalSignature, or its key is of another kind."
        ),
    )


def _only_signs(leaf: x509.Certificate) -> bool:
    usage = None
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            return False
        if isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
    return usage is not None and usage.digital_signature and not usage.key_cert_sign
