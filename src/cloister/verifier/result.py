"""What a verifier found, in the words of RFC 9334 and draft-ietf-rats-ar4si.

An `AttestationResult` lists every claim with its finding, where the finding comes from and
a sentence a person understands. It cannot be used as a boolean: the only way on is
`AttestationResult.require_affirming`, which raises or returns an `AffirmedAttester`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from cloister.errors import AppraisalError, UnsupportedError
from cloister.strictjson import JsonObject


class Finding(enum.StrEnum):
    """AR4SI trust tiers (draft-ietf-rats-ar4si section 2.3), one for each claim and overall."""

    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"
    NONE = "none"
    """Not decided: evidence missing or of a kind this verifier does not know. Never a pass."""


class Source(enum.StrEnum):
    """Who a finding is taken from (`aci/1` section 8.3)."""

    HARDWARE_PROVEN = "hardware_proven"
    VERIFIER_DERIVED = "verifier_derived"
    PROVIDER_ASSERTED = "provider_asserted"
    OPERATOR_ASSERTED = "operator_asserted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing checked. ``code`` is set, and stable, when the finding is not affirming."""

    name: str
    finding: Finding
    source: Source
    explanation: str
    code: str | None = None
    device: str = "cpu0"
    """EAR submodule the claim belongs to: ``cpu0``, ``gpu0``, …"""
    value: str | None = None
    """What was found, as one word: ``pass``, ``fail``, or a vendor's own (``UpToDate``); ``None``
    where nothing was looked at. Says what the evidence shows; `finding` says what it is worth."""


def worst(claims: Iterable[Claim]) -> Finding:
    """The worst finding of `claims`; `Finding.NONE` where there are none."""
    found = {claim.finding for claim in claims}
    for finding in (Finding.CONTRAINDICATED, Finding.NONE, Finding.WARNING):
        if finding in found:
            return finding
    return Finding.AFFIRMING if found else Finding.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class AffirmedAttester:
    """A worker whose evidence was affirmed; the only ticket into a sealed channel.

    Made by `AttestationResult.require_affirming` alone. `keyset` is the attested keyset
    (`cloister.channel.keyset.Keyset`), `claims_document` the parsed document whose digest the
    keyset's subject carries.
    """

    platform: str
    development: bool
    keyset_digest: str
    keyset: object
    claims_document: Mapping[str, object]
    expires_at: datetime
    """Aware UTC; the keyset's ``not_after``, capped by the policy's maximum age."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffirmedEvidence:
    """Evidence on its own that was affirmed: a quote or report, without a worker's keys.

    Made by `AttestationResult.require_affirmed_evidence` alone. No channel accepts it: it names
    no key to seal anything to.
    """

    platform: str
    development: bool
    facts: JsonObject = field(repr=False)
    """The decoded fields, all of them authenticated, under the vendors' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """Everything that was checked about one report, and the overall finding.

    `verdict` is the worst finding of all claims: contraindicated, then none, then warning.
    """

    platform: str
    """Always names development platforms as such: ``development (software TPM)``."""
    development: bool
    memory_confidentiality: str
    """What protects memory, or ``none`` (a TPM measures software; it encrypts nothing)."""
    claims: tuple[Claim, ...]
    not_proven: tuple[str, ...]
    """Sentences that say what this evidence does not show, always listed."""
    appraised_at: datetime
    policy_id: str
    """Digest of the policy that was applied: ``sha256:<hex>``."""
    attester: AffirmedAttester | None = field(default=None, repr=False)
    facts: JsonObject = field(default_factory=dict, repr=False)
    """Fields of the evidence as decoded, under the vendors' names; worth what `verdict` says."""

    @property
    def verdict(self) -> Finding:
        """The worst finding of all claims; `Finding.NONE` where nothing was checked."""
        return worst(self.claims)

    def __bool__(self) -> NoReturn:
        raise TypeError("an AttestationResult is not a boolean; call require_affirming()")

    @property
    def failures(self) -> tuple[Claim, ...]:
        """The claims that are not affirming, in the order they were checked."""
        return tuple(claim for claim in self.claims if claim.finding is not Finding.AFFIRMING)

    def require_affirming(self) -> AffirmedAttester:
        """Return the affirmed attester, or raise with the first claim that failed.

        Raises:
            AppraisalError: a claim is contraindicated or only a warning; carries this result.
            UnsupportedError: nothing failed, but something could not be decided.
        """
        self._raise_unless_affirming()
        if self.attester is None:
            raise UnsupportedError(
                "the evidence is affirmed, but it names no keys to talk to",
                code="verifier.no_keys",
            )
        return self.attester

    def require_affirmed_evidence(self) -> AffirmedEvidence:
        """Return what evidence on its own affirmed; raises as `require_affirming` does."""
        self._raise_unless_affirming()
        return AffirmedEvidence(
            platform=self.platform, development=self.development, facts=self.facts
        )

    def _raise_unless_affirming(self) -> None:
        if self.verdict is Finding.AFFIRMING:
            return
        failures = self.failures
        if not failures:
            raise UnsupportedError("the verifier checked nothing", code="verifier.nothing_checked")
        worst = next((claim for claim in failures if claim.finding is self.verdict), failures[0])
        if self.verdict is Finding.NONE:
            raise UnsupportedError(worst.explanation, code=worst.code)
        raise AppraisalError(worst.explanation, code=worst.code, result=self)
