"""From an authenticated manifest to what a verifier compares a worker with."""

from __future__ import annotations

from types import MappingProxyType

from cloister.channel.claims import ClaimsDocument
from cloister.manifest.authenticate import AuthenticatedManifest
from cloister.manifest.model import Manifest
from cloister.verifier.appraise.manifest import appraise_terms
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import UNCHECKED, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import Finding


def expected_manifest(authenticated: AuthenticatedManifest) -> ExpectedManifest:
    """The terms of the manifest, with who stands behind it in words."""
    manifest = authenticated.manifest
    engines, egress = manifest.engines, manifest.serving.egress
    return ExpectedManifest(
        sha256=authenticated.digest,
        standing=standing(authenticated),
        signed=authenticated.signed,
        signer_ids=tuple(signer.key_id for signer in authenticated.signers),
        expires=authenticated.expires,
        models=MappingProxyType({model.name: model.sha256 for model in manifest.models}),
        engines=(
            UNCHECKED
            if isinstance(engines, Unchecked)
            else frozenset((engine.name, engine.version) for engine in engines)
        ),
        egress=UNCHECKED if isinstance(egress, Unchecked) else frozenset(egress),
        receipts_keep_s=manifest.serving.receipts_keep_s,
        stream_bucket=manifest.serving.stream_bucket,
        body_bucket=manifest.serving.body_bucket,
    )


def broken_terms(document: ClaimsDocument, authenticated: AuthenticatedManifest) -> tuple[str, ...]:
    """What of the manifest's terms a worker so described does not keep, as sentences.

    The same comparison as a verifier's, for the worker itself, before it starts.
    """
    ledger = Ledger()
    appraise_terms(document, expected_manifest(authenticated), ledger)
    claims = ledger.made_claims()
    return tuple(one.explanation for one in claims if one.finding is not Finding.AFFIRMING)


def standing(authenticated: AuthenticatedManifest) -> str:
    """Which manifest it is and who stands behind it, as a sentence."""
    header = authenticated.manifest.header
    what = f"The manifest of {header.name}, version {header.version}"
    until = f"it is in force until {authenticated.expires:%Y-%m-%d %H:%M} UTC"
    if authenticated.later is not None:
        until += f", while workers change to version {authenticated.later.version}"
    digest = f"(sha256:{authenticated.digest})"
    if not authenticated.signed:
        return f"{what} {digest} is accepted unsigned, as you asked by name; {until}."
    signers = ", ".join(signer.describe() for signer in authenticated.signers)
    handed = authenticated.handed_over_from
    since = "" if handed is None else f", to whom the owners of version {handed} handed over"
    return f"{what} {digest} is signed by {signers}{since}; {until}."


def reference_alternatives(manifest: Manifest) -> tuple[ReferenceValues, ...]:
    """Reference values of which a worker must match one set.

    Accepted states of hardware platforms are alternatives already, so each set has them all. Lists
    of components are not: what is measured must match one image's list one to one, never parts of
    two. There is one set at least, which accepts nothing if the manifest lists no image.
    """
    platforms = [
        reference for image in manifest.images for reference in image.reference_values.platforms
    ]
    lists = [image.reference_values for image in manifest.images]
    piecewise = [values.components for values in lists if values.components]
    return tuple(ReferenceValues.collect(components, platforms) for components in piecewise or [()])
