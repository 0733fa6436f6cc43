"""From a worker's manifest bundle to what its evidence is compared with.

The owners that a resource policy names are pinned; what was accepted under a pin before is
remembered in the store, so an older manifest, or another one of the same version, is refused here
as it is by clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.broker.denial import Denied
from cloister.broker.policy import ManifestTerms, ResourcePolicy
from cloister.errors import AppraisalError, CloisterError
from cloister.manifest.authenticate import AuthenticatedManifest, authenticate_bundle
from cloister.manifest.bundle import load_bundle
from cloister.manifest.narrowing import narrowed
from cloister.manifest.pin import Remembered
from cloister.manifest.signatures import IdentityVerifier
from cloister.manifest.terms import expected_manifest, reference_alternatives
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What evidence has to satisfy."""

    appraisal: AppraisalPolicy
    alternatives: tuple[ReferenceValues, ...]
    """Sets of reference values, one of which has to match."""
    manifest: ExpectedManifest | None = None
    """What the worker has to run under."""
    accepted: AuthenticatedManifest | None = None

    @property
    def digests(self) -> frozenset[str]:
        """``sha256:`` names of the manifest and its signers, for revocations."""
        if self.accepted is None:
            return frozenset()
        signers = (signer.key_id for signer in self.accepted.signers)
        return frozenset({f"sha256:{self.accepted.digest}", *signers})


def terms_of(
    policy: ResourcePolicy,
    bundle: bytes | None,
    *,
    remembered: Remembered | None,
    identities: IdentityVerifier | None,
    at: datetime,
) -> Terms:
    """The terms under `policy` for a worker that brings this bundle. Raises Denied.

    Without `identities`, signatures through Sigstore are not counted; where that matters, it is
    denied (``manifest.identities``).
    """
    if isinstance(policy.manifest, Unchecked):
        own = policy.reference_values
        return Terms(appraisal=policy.appraisal, alternatives=() if own is None else (own,))
    if bundle is None:
        raise Denied("manifest", "the worker brought no manifest", because="manifest.missing")
    try:
        accepted = authenticate_bundle(
            load_bundle(bundle),
            policy.manifest.pin,
            at=at,
            remembered=remembered,
            identities=identities,
        )
        return _terms(policy, policy.manifest, accepted)
    except Denied:
        raise
    except CloisterError as error:
        raise Denied("manifest", str(error), because=error.code) from None


def _terms(policy: ResourcePolicy, terms: ManifestTerms, accepted: AuthenticatedManifest) -> Terms:
    if not isinstance(terms.digests, Unchecked) and accepted.digest not in terms.digests:
        raise AppraisalError(
            "the manifest is none of those that this secret is released for",
            code="manifest.digest",
        )
    return Terms(
        appraisal=narrowed(policy.appraisal, accepted.manifest),
        alternatives=reference_alternatives(accepted.manifest),
        manifest=expected_manifest(accepted),
        accepted=accepted,
    )
