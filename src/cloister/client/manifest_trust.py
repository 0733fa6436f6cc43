"""Trust in whoever signs the manifest: reference values, models and policy come from there.

Steps for each report, before the worker's own evidence is looked at:

1. The bundle: the one given, or else the one that the worker staples to its report.
2. It is authenticated against the pin and against what is remembered
   (`cloister.manifest.authenticate`).
3. Its version is remembered, whatever becomes of this worker.
4. It narrows the caller's policy (`cloister.manifest.narrowing`).

Then the report is verified with the manifest's reference values, and has to name this manifest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.client.manifest_memory import ManifestMemory
from cloister.endorsements.roots import Roots
from cloister.errors import AuthenticationError
from cloister.evidence.report import ITEM_MANIFEST, parse_attestation_report
from cloister.manifest.authenticate import AuthenticatedManifest, authenticate_bundle
from cloister.manifest.bundle import SignedManifest, load_bundle
from cloister.manifest.narrowing import narrowed
from cloister.manifest.pin import ManifestPin, SignerPin, UnsafeUnsignedManifest
from cloister.manifest.signatures import IdentityVerifier
from cloister.manifest.terms import expected_manifest, reference_alternatives
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestTrust:
    """What a report is checked against, where the manifest says what workers must be.

    A `Verifier` like `cloister.client.trust.Trust`.
    """

    policy: AppraisalPolicy
    """The caller's own; a manifest narrows it."""
    roots: Roots
    pin: ManifestPin
    memory: ManifestMemory
    bundle: SignedManifest | None = None
    """None takes what the worker staples to its report."""
    identities: IdentityVerifier | None = None

    def __post_init__(self) -> None:
        """Say aloud what is unsafe."""
        if isinstance(self.pin, UnsafeUnsignedManifest):
            _LOG.warning("manifests are accepted unsigned: whoever writes one decides everything")

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        """Authenticate the manifest, then verify `report` against it.

        Raises:
            MalformedError: the report, or the bundle in it, does not decode.
            AuthenticationError, UnsupportedError: the manifest is not what was pinned.
            AppraisalError: it permits what the caller's policy does not, or has nothing in common
                with it.
            ConfigurationError: what was accepted cannot be remembered.
        """
        manifest = self.authenticate(self.bundle or stapled_bundle(report), at=at)
        policy = narrowed(self.policy, manifest.manifest)
        expected = expected_manifest(manifest)
        results = [
            verify_report(
                report,
                nonce=nonce,
                policy=policy,
                reference_values=values,
                roots=self.roots,
                at=at,
                manifest=expected,
            )
            for values in reference_alternatives(manifest.manifest)
        ]
        return min(results, key=_distance)

    def authenticate(self, signed: SignedManifest, *, at: datetime) -> AuthenticatedManifest:
        """Steps 2 and 3."""
        pin = self.pin
        if not isinstance(pin, SignerPin):  # one digest, or whatever there is: nothing to remember
            return authenticate_bundle(signed, pin, at=at, identities=self.identities)
        found = authenticate_bundle(
            signed,
            pin,
            at=at,
            remembered=self.memory.recall(pin.pin_id),
            identities=self.identities,
        )
        self.memory.remember(pin.pin_id, found.remembered)
        return found


def stapled_bundle(report: bytes) -> SignedManifest:
    """The bundle that a worker staples to its report. Nothing is authenticated.

    Raises:
        MalformedError: the report or the bundle does not decode.
        AuthenticationError: there is none (``manifest.missing``).
    """
    item = parse_attestation_report(report).evidence.get(ITEM_MANIFEST)
    if item is None:
        raise AuthenticationError(
            "the worker shows no manifest: it was started without one (cloister serve --manifest),"
            " or you have to name its bundle yourself (--manifest)",
            code="manifest.missing",
        )
    return load_bundle(item.data)


def _distance(result: AttestationResult) -> tuple[bool, int]:
    """Affirming results first, then those with the fewest claims that failed."""
    return result.verdict is not Finding.AFFIRMING, len(result.failures)
