"""How long a copy may be used, and when to look for a newer one.

What counts first is what an artefact says of itself. A maximum age comes on top, because signed
documents stay within their own dates for a month, and a service that stalled, or somebody in
between, can hand out the same one for all of that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.endorsements.artefact import Artefact, ArtefactKind

SKEW: Final = timedelta(minutes=5)

LASTING: Final = frozenset(
    {
        ArtefactKind.AMD_VCEK,
        ArtefactKind.AMD_VCEK_CHAIN,
        ArtefactKind.AMD_VLEK_CHAIN,
        ArtefactKind.NVIDIA_RIM,
        ArtefactKind.AZURE_AK_INTERMEDIATE,
        ArtefactKind.GCP_AK_INTERMEDIATE,
    }
)
"""Certificates and manifests: what they say does not change, so they are fetched once. The
others are news (what is revoked, what is out of date) and grow old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Spans of time; the defaults suit artefacts that vendors issue for a month."""

    refresh_after: timedelta = timedelta(days=1)
    """News is fetched anew when the copy is this old."""
    max_age: timedelta = timedelta(days=7)
    """News older than this is not used, whatever it says of itself."""
    refresh_ahead: timedelta = timedelta(days=7)
    """How long before its own end a copy is renewed; at most a third of its life."""
    grace: timedelta = timedelta(0)
    """How long past its own end a copy may be handed out when no newer one can be had. A strict
    verifier refuses it all the same."""

    def is_due(self, artefact: Artefact, at: datetime) -> bool:
        """Whether to look for a newer copy."""
        if artefact.fetched_at > at + SKEW:  # a clock was wrong, then or now
            return True
        if artefact.valid_until is not None:
            life = artefact.valid_until - artefact.issued_at
            if at >= artefact.valid_until - min(self.refresh_ahead, life / 3):
                return True
        return artefact.kind not in LASTING and at >= artefact.fetched_at + self.refresh_after

    def is_usable(self, artefact: Artefact, at: datetime) -> bool:
        """Whether the copy may be handed out while no newer one can be had."""
        if artefact.valid_until is not None and at - self.grace > artefact.valid_until:
            return False
        return artefact.kind in LASTING or at <= artefact.fetched_at + self.max_age
