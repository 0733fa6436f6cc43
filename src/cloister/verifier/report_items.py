"""From the evidence items of a report to the evidence that one platform's verifier takes.

``tee_type`` only says which items to look for. What the platform is, is what its evidence shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence import items
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, EvidenceItem
from cloister.verifier.evidence import Verify

Items = Mapping[str, EvidenceItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwarePlatform:
    """How reports of one ``tee_type`` are read."""

    reference: str
    """The platform's name in reference values."""
    assemble: Callable[[Items], tuple[Verify, object]]
    """The verifier for these items, and the evidence to give it. Raises MalformedError."""


def _data(evidence: Items, name: str) -> bytes:
    item = evidence.get(name)
    if item is None:
        raise MalformedError(f"there is no {name}")
    return item.data


def _optional(evidence: Items, name: str) -> bytes | None:
    item = evidence.get(name)
    return None if item is None else item.data


def _endorsements(evidence: Items, name: str, media_type: str) -> tuple[bytes, ...]:
    item = evidence.get(name)
    listed = () if item is None else item.endorsements
    return tuple(entry.data for entry in listed if entry.media_type == media_type)


def _certificates(evidence: Items, name: str) -> tuple[bytes, ...]:
    return _endorsements(evidence, name, MEDIA_TYPE_CERTIFICATE)


def _nitro(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro

    return verify_nitro, NitroEvidence(document=_data(evidence, items.ITEM_NITRO_DOCUMENT))


HARDWARE: Final[Mapping[str, HardwarePlatform]] = {
    items.TEE_TYPE_NITRO: HardwarePlatform(reference="nitro", assemble=_nitro),
}
"""By ``tee_type``."""
