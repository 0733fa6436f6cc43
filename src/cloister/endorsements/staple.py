"""Artefacts as endorsements of a report's items, and back.

A worker that staples what vouches for it spares every client the vendors' services, and tells no
vendor who its clients are. Nothing is trusted for being stapled.

======================  ====================================================================
of an item              media types
======================  ====================================================================
``snp.report``          ``application/pkix-cert`` (VCEK, ASK), ``application/pkix-crl``
``tdx.quote``, `sgx…`   ``application/vnd.cloister.intel-collateral+json``
``gpu<n>.evidence``     ``application/vnd.cloister.nvidia-rim+xml``, ``application/ocsp-response``
any with an AK          ``application/pkix-cert``
======================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import Artefact, ArtefactKind
from cloister.endorsements.contents import parse_pem_chain, parse_signed_json
from cloister.endorsements.intel import Collateral, parse_collateral
from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.items import MEDIA_TYPE_COLLATERAL, MEDIA_TYPE_CRL, MEDIA_TYPE_RIM
from cloister.evidence.report import (
    MAX_ENDORSEMENT_BYTES,
    MAX_ENDORSEMENTS,
    MEDIA_TYPE_CERTIFICATE,
    Endorsement,
)

MEDIA_TYPE_OCSP: Final = "application/ocsp-response"
"""RFC 6960 appendix C."""

_CHAINS: Final = (ArtefactKind.AMD_VCEK_CHAIN, ArtefactKind.AMD_VLEK_CHAIN)
_AK_KINDS: Final = (ArtefactKind.AZURE_AK_INTERMEDIATE, ArtefactKind.GCP_AK_INTERMEDIATE)
_MEDIA_TYPES: Final = {
    ArtefactKind.AMD_VCEK: MEDIA_TYPE_CERTIFICATE,
    ArtefactKind.AMD_CRL: MEDIA_TYPE_CRL,
    ArtefactKind.NVIDIA_RIM: MEDIA_TYPE_RIM,
    ArtefactKind.NVIDIA_OCSP: MEDIA_TYPE_OCSP,
    ArtefactKind.AZURE_AK_INTERMEDIATE: MEDIA_TYPE_CERTIFICATE,
    ArtefactKind.GCP_AK_INTERMEDIATE: MEDIA_TYPE_CERTIFICATE,
}
_COLLATERAL: Final = (
    ArtefactKind.INTEL_TCB_INFO,
    ArtefactKind.INTEL_QE_IDENTITY,
    ArtefactKind.INTEL_PCK_CRL,
    ArtefactKind.INTEL_ROOT_CRL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stapled:
    """What a verifier finds among an item's endorsements."""

    certificates: tuple[bytes, ...] = ()
    """DER."""
    crls: tuple[bytes, ...] = ()
    """DER."""
    collateral: Collateral | None = None
    rims: tuple[bytes, ...] = ()
    """XML."""
    ocsp: tuple[bytes, ...] = ()
    """DER."""


def staple(artefacts: Iterable[Artefact]) -> tuple[Endorsement, ...]:
    """Endorsements of one item, in the order that verifiers read them.

    Roots are left out: a verifier has its own. Intel's four artefacts become one document.

    Raises:
        ConfigurationError: Intel's collateral is not complete, or it is too much for a report
            (``endorsement.staple``).
    """
    given = tuple(artefacts)
    found = [*_each(given), *_intel(given)]
    if len(found) > MAX_ENDORSEMENTS:
        raise _refused(f"a report takes {MAX_ENDORSEMENTS} endorsements, not {len(found)}")
    for endorsement in found:
        if len(endorsement.data) > MAX_ENDORSEMENT_BYTES:
            raise _refused(f"an endorsement has more than {MAX_ENDORSEMENT_BYTES} bytes")
    return tuple(found)


def unstaple(endorsements: Iterable[Endorsement]) -> Stapled:
    """Sort an item's endorsements by what they are; unknown media types are left alone.

    Raises:
        MalformedError: there is more than one collateral document, or it does not decode.
    """
    by_type: dict[str, list[bytes]] = {}
    for endorsement in endorsements:
        by_type.setdefault(endorsement.media_type, []).append(endorsement.data)
    documents = by_type.get(MEDIA_TYPE_COLLATERAL, [])
    if len(documents) > 1:
        raise MalformedError("an item has two sets of collateral", code="endorsement.staple")
    return Stapled(
        certificates=tuple(by_type.get(MEDIA_TYPE_CERTIFICATE, ())),
        crls=tuple(by_type.get(MEDIA_TYPE_CRL, ())),
        collateral=parse_collateral(documents[0]) if documents else None,
        rims=tuple(by_type.get(MEDIA_TYPE_RIM, ())),
        ocsp=tuple(by_type.get(MEDIA_TYPE_OCSP, ())),
    )


def collateral_of(artefacts: Sequence[Artefact]) -> Collateral:
    """Intel's four artefacts as the one set that a quote is judged by.

    Raises:
        ConfigurationError: one is missing, or there are two of a kind (``endorsement.staple``).
        MalformedError: one does not decode.
    """
    tcb_info, qe_identity, pck_crl, root_crl = (_only(artefacts, kind) for kind in _COLLATERAL)
    tcb = parse_signed_json(tcb_info.data, "tcbInfo")
    identity = parse_signed_json(qe_identity.data, "enclaveIdentity")
    return Collateral(
        pck_crl_issuer_chain=pck_crl.issuer_chain,
        root_ca_crl=root_crl.data,
        pck_crl=pck_crl.data,
        tcb_info_issuer_chain=tcb_info.issuer_chain,
        tcb_info=tcb.body,
        tcb_info_signature=tcb.signature,
        qe_identity_issuer_chain=qe_identity.issuer_chain,
        qe_identity=identity.body,
        qe_identity_signature=identity.signature,
    )


def _each(artefacts: Iterable[Artefact]) -> Iterator[Endorsement]:
    for artefact in artefacts:
        if artefact.kind in _CHAINS:
            yield from _certificates(parse_pem_chain(artefact.data)[:-1])
        elif artefact.kind in _MEDIA_TYPES:
            yield Endorsement(media_type=_MEDIA_TYPES[artefact.kind], data=artefact.data)
            if artefact.kind in _AK_KINDS and artefact.issuer_chain:
                yield from _certificates(parse_pem_chain(artefact.issuer_chain))


def _certificates(certificates: Iterable[x509.Certificate]) -> Iterator[Endorsement]:
    for certificate in certificates:
        data = certificate.public_bytes(Encoding.DER)
        yield Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=data)


def _intel(artefacts: Sequence[Artefact]) -> Iterator[Endorsement]:
    if any(artefact.kind in _COLLATERAL for artefact in artefacts):
        data = collateral_of(artefacts).encode()
        yield Endorsement(media_type=MEDIA_TYPE_COLLATERAL, data=data)


def _only(artefacts: Iterable[Artefact], kind: ArtefactKind) -> Artefact:
    found = [artefact for artefact in artefacts if artefact.kind is kind]
    if len(found) != 1:
        raise _refused(f"collateral takes one {kind}, and there are {len(found)}")
    return found[0]


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="endorsement.staple")
