"""Whether an artefact was signed under a pinned root: the cache admits no other.

This keeps forgeries from displacing good copies, and from being remembered as the newest issue,
after which every genuine one would look rolled back. Dates and revocation are not looked at;
whoever uses an artefact checks all of it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.amd import common_name
from cloister.endorsements.artefact import Artefact, ArtefactKind
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.contents import parse_pem_chain, parse_signed_json
from cloister.endorsements.intel import parse_crl
from cloister.endorsements.ocsp import check_answer
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import AuthenticationError

MAX_DEPTH: Final = 4

UNSIGNED_HERE: Final = frozenset({ArtefactKind.NVIDIA_RIM})
"""Not checked here: a manifest's XML signature takes a library that not every installation has.
So no date of a manifest is remembered either; the verifier checks all of it."""

_VENDORS: Final = {
    "amd": Vendor.AMD,
    "intel": Vendor.INTEL,
    "azure": Vendor.AZURE_VTPM,
    "gcp": Vendor.GOOGLE_VTPM,
}
_TCB_SIGNER: Final = "Intel SGX TCB Signing"


def check_genuine(artefact: Artefact, roots: Roots) -> None:
    """See that a key under one of the vendor's pinned roots signed `artefact`.

    Raises:
        AuthenticationError: none did (code ``endorsement.signature``).
        MalformedError: it does not decode.
    """
    if artefact.kind in UNSIGNED_HERE:
        return
    if artefact.kind is ArtefactKind.NVIDIA_OCSP:
        _check_ocsp(artefact, roots)
        return
    anchors = roots.vendor(_VENDORS[artefact.kind.partition(".")[0]])
    sent = parse_pem_chain(artefact.issuer_chain) if artefact.issuer_chain else ()
    candidates = (*sent, *roots.intermediates)
    if not _signed(artefact, candidates, anchors):
        raise _not_genuine(artefact)


def _check_ocsp(artefact: Artefact, roots: Roots) -> None:
    """The key is the digest of the certificate, and the certificate determines its issuer."""
    chain = parse_pem_chain(artefact.issuer_chain)
    if (
        len(chain) != 2
        or hashlib.sha256(chain[0].public_bytes(Encoding.DER)).hexdigest() != artefact.key
        or not _issued(chain[0], chain[1])
    ):
        raise _not_genuine(artefact)
    try:
        check_answer(
            artefact.data,
            *chain,
            at=artefact.issued_at,
            authorities=ocsp_authorities(roots),
        )
    except AuthenticationError:
        raise _not_genuine(artefact) from None


def ocsp_authorities(roots: Roots) -> tuple[x509.Certificate, ...]:
    """Who besides a certificate's issuer may name the OCSP responder for it."""
    anchors = roots.vendor(Vendor.NVIDIA_DEVICE, Vendor.NVIDIA_RIM)
    return tuple(anchor.certificate for anchor in anchors)


def _not_genuine(artefact: Artefact) -> AuthenticationError:
    return AuthenticationError(
        f"{artefact.kind} {artefact.key} from {artefact.source} was not signed under a root"
        " that is pinned here",
        code="endorsement.signature",
    )


def _signed(
    artefact: Artefact, candidates: Sequence[x509.Certificate], anchors: Sequence[Anchor]
) -> bool:
    match artefact.kind:
        case (
            ArtefactKind.AMD_VCEK
            | ArtefactKind.AZURE_AK_INTERMEDIATE
            | ArtefactKind.GCP_AK_INTERMEDIATE
        ):
            return issued_under(parse_certificate(artefact.data), candidates, anchors)
        case ArtefactKind.AMD_VCEK_CHAIN | ArtefactKind.AMD_VLEK_CHAIN:
            found = parse_pem_chain(artefact.data)
            return all(issued_under(one, found, anchors) for one in found)
        case ArtefactKind.INTEL_TCB_INFO:
            return _intel(artefact.data, "tcbInfo", candidates, anchors)
        case ArtefactKind.INTEL_QE_IDENTITY:
            return _intel(artefact.data, "enclaveIdentity", candidates, anchors)
        case _:
            return _crl(parse_crl(artefact.data), candidates, anchors)


def issued_under(
    certificate: x509.Certificate,
    candidates: Sequence[x509.Certificate],
    anchors: Sequence[Anchor],
    *,
    depth: int = MAX_DEPTH,
) -> bool:
    """Whether signatures lead from `certificate` to an anchor, or it is one itself.

    Names, signatures and the CA flag only.
    """
    pool = list(candidates)
    reached = [certificate]
    for left in range(depth, -1, -1):
        if any(one == anchor.certificate for one in reached for anchor in anchors):
            return True
        if not left or not reached:
            return False
        if any(_issued(one, anchor.certificate) for one in reached for anchor in anchors):
            return True
        # Each is an issuer once, so that a heap of namesakes that signed one another costs little.
        above = [issuer for issuer in pool if any(_issued(one, issuer) for one in reached)]
        pool = [one for one in pool if one not in above]
        reached = above
    return False


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject or not _is_ca(issuer):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    return any(
        isinstance(extension.value, x509.BasicConstraints) and extension.value.ca
        for extension in certificate.extensions
    )


def _crl(
    crl: x509.CertificateRevocationList,
    candidates: Sequence[x509.Certificate],
    anchors: Sequence[Anchor],
) -> bool:
    known = chain((anchor.certificate for anchor in anchors), candidates)
    return any(
        issuer.subject == crl.issuer
        and _crl_signed(crl, issuer)
        and issued_under(issuer, candidates, anchors)
        for issuer in known
    )


def _crl_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        key = issuer.public_key()
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            return False
        return crl.is_signature_valid(key)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _intel(
    data: bytes,
    name: str,
    candidates: Sequence[x509.Certificate],
    anchors: Sequence[Anchor],
) -> bool:
    """ECDSA with P-256 and SHA-256 over the inner object, by a TCB signing certificate."""
    document = parse_signed_json(data, name)
    signature = encode_dss_signature(
        int.from_bytes(document.signature[:32], "big"),
        int.from_bytes(document.signature[32:], "big"),
    )
    return any(
        _verifies(signer, signature, document.body) and issued_under(signer, candidates, anchors)
        for signer in candidates
        if common_name(signer.subject) == _TCB_SIGNER
    )


def _verifies(signer: x509.Certificate, signature: bytes, body: bytes) -> bool:
    try:
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, body, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
