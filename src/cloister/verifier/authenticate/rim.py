"""Authenticates a reference integrity manifest: an XML signature by one of NVIDIA's signers.

Steps; each makes one claim, named after a prefix such as ``nvgpu.driver_rim``:

1. ``<prefix>``: the document decodes (`cloister.evidence.rim`): one enveloped signature over all
   of it, by the algorithms in use, and nothing in it that readers of XML could take differently.
2. ``<prefix>_signature``: ECDSA with SHA-384 over the canonical document, by the key of the
   certificate that comes first in it.
3. ``<prefix>_chain``, ``_validity`` and ``_revocation``: that certificate leads to the pinned
   root of NVIDIA's manifests (`cloister.verifier.authenticate.nvidia_chain`).

What a manifest says is read from the bytes that were hashed, never from the document around
them: so nothing can be moved, added or wrapped after it was signed.

Canonical XML and digests are left to `signxml`, an optional dependency (``cloister[gpu]``).
Without it no manifest is authentic, and the claim stays undecided.

A manifest that was authenticated once can be handed in again instead of its bytes. Then only
what changes is looked at: dates, pinned roots and revocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import AuthenticationError, MalformedError, UnsupportedError
from cloister.evidence.rim import Rim, RimDocument, parse_rim, parse_signed_content
from cloister.verifier.authenticate.nvidia_chain import (
    Revocation,
    chain_claims,
    chain_holds,
    record_chain,
    redated,
    signing_key,
)
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, authenticate_chain
from cloister.verifier.ledger import Ledger

SIGNATURE: Final = "signature"
CODES: Final = "rim_"
"""What the codes of chains of manifests' signers begin with."""
MISSING_EXTRA: Final = (
    "Manifests are checked with signxml, which is not installed: install cloister[gpu]."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRim:
    """A manifest as one of NVIDIA's signers signed it."""

    rim: Rim
    """Read from the signed bytes."""
    chain: Chain


RimSource: TypeAlias = bytes | Authenticated[SignedRim]
"""A manifest as it arrived, or one that was authenticated before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedRim:
    """What became of one manifest; it can be recorded for every device that needs it."""

    malformed: str | None = None
    """Why it does not decode."""
    rim: Rim | None = None
    """What it says. Signed if `signed`, otherwise only stated."""
    chain: Chain | None = None
    signed: bool = False
    unsupported: bool = False
    authenticated: Authenticated[SignedRim] | None = None
    """Set if every step held."""


def authenticate_rim(
    data: bytes, *, roots: Roots, at: datetime, revocation: Revocation | None = None
) -> Authenticated[SignedRim]:
    """Authenticate a manifest on its own, to use it for many reports.

    Raises:
        MalformedError: it does not decode.
        UnsupportedError: `signxml` is not installed.
        AuthenticationError: a signature, the chain, a date or revocation.
    """
    examined = examine_rim(data, roots=roots, at=at, revocation=revocation or Revocation())
    if examined.authenticated is not None:
        return examined.authenticated
    if examined.malformed is not None:
        raise MalformedError(examined.malformed)
    if examined.unsupported:
        raise UnsupportedError(MISSING_EXTRA, code="signxml_missing")
    if not examined.signed:
        raise AuthenticationError("the manifest is not signed", code="rim_bad_signature")
    raise AuthenticationError("the manifest's signer is not accepted", code="rim_bad_chain")


def examine_rim(
    source: RimSource, *, roots: Roots, at: datetime, revocation: Revocation
) -> ExaminedRim:
    """Run every step, without claims, for `record_rim`."""
    anchors = roots.vendor(Vendor.NVIDIA_RIM)
    if isinstance(source, Authenticated):
        return _again(source, anchors, at, revocation)
    try:
        document = parse_rim(source)
        certificates = tuple(parse_certificate(data) for data in document.certificates)
    except MalformedError as error:
        return ExaminedRim(malformed=str(error))
    chain = authenticate_chain(
        certificates[0],
        (*certificates[1:], *roots.intermediates),
        anchors=anchors,
        at=at,
        crls=revocation.crls,
    )
    chain = revocation.apply(chain, at)
    try:
        rim = _signed_content(document, certificates[0])
    except ImportError:
        return ExaminedRim(rim=document.rim, chain=chain, unsupported=True)
    if rim is None:
        return ExaminedRim(rim=document.rim, chain=chain)
    holds = chain_holds(chain, revocation)
    return ExaminedRim(
        rim=rim,
        chain=chain,
        signed=True,
        authenticated=_grant(SignedRim(rim=rim, chain=chain)) if holds else None,
    )


def rim_claims(prefix: str, revocation: Revocation) -> tuple[str, ...]:
    """Names of the claims that `record_rim` makes, in order."""
    return (prefix, f"{prefix}_{SIGNATURE}", *chain_claims(f"{prefix}_", revocation))


def record_rim(prefix: str, examined: ExaminedRim, revocation: Revocation, ledger: Ledger) -> None:
    """Make the claims of `rim_claims`, save the first unless the document does not decode."""
    if examined.malformed is not None:
        ledger.refuse(prefix, "malformed", f"A manifest is refused: {examined.malformed}.")
        return
    if examined.unsupported:
        ledger.undecided(f"{prefix}_{SIGNATURE}", "signxml_missing", MISSING_EXTRA)
    else:
        ledger.check(
            f"{prefix}_{SIGNATURE}",
            holds=examined.signed,
            affirmed="The signer that the manifest names signed all of it.",
            code="rim_bad_signature",
            refused="The manifest was not signed by the signer it names, or was changed since.",
        )
    if examined.chain is not None:
        record_chain(f"{prefix}_", examined.chain, revocation, ledger, codes=CODES)


def _again(
    source: Authenticated[SignedRim],
    anchors: Sequence[Anchor],
    at: datetime,
    revocation: Revocation,
) -> ExaminedRim:
    signed = source.value
    chain = redated(signed.chain, anchors=anchors, at=at)
    if chain.anchor is not None and revocation.crls:
        chain = authenticate_chain(
            chain.leaf, chain.certificates[1:], anchors=anchors, at=at, crls=revocation.crls
        )
    chain = revocation.apply(chain, at)
    holds = chain_holds(chain, revocation)
    return ExaminedRim(
        rim=signed.rim, chain=chain, signed=True, authenticated=source if holds else None
    )


def _signed_content(document: RimDocument, signer: x509.Certificate) -> Rim | None:
    """What `signer` signed, or ``None``.

    The time for `signxml` is one at which the signer's certificate is valid: whether it is at the
    time of verification is a step of its own.

    Raises ImportError without `signxml`.
    """
    from lxml import etree  # type: ignore[import-untyped] # it ships no types
    from signxml.algorithms import DigestAlgorithm, SignatureMethod
    from signxml.exceptions import SignXMLException
    from signxml.verifier import SignatureConfiguration, XMLVerifier

    if signing_key(signer) is None:
        return None
    configuration = SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
        verification_time=signer.not_valid_before_utc,
    )
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        result = XMLVerifier().verify(
            document.raw, x509_cert=signer, parser=parser, expect_config=configuration
        )
    except (SignXMLException, etree.LxmlError, ValueError, TypeError):
        return None
    if isinstance(result, list):
        return None
    try:
        return parse_signed_content(result.signed_data)
    except MalformedError:
        return None
