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


def _collateral(evidence: Items, name: str) -> bytes | None:
    """The collateral's own bytes: whether they decode is a claim of the platform's."""
    found = _endorsements(evidence, name, items.MEDIA_TYPE_COLLATERAL)
    return found[0] if found else None


def _snp(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.snp import SnpEvidence, snp_evidence_from_table, verify_snp

    name = items.ITEM_SNP_REPORT
    report, certificates = _data(evidence, name), _certificates(evidence, name)
    crls = _endorsements(evidence, name, items.MEDIA_TYPE_CRL)
    for table in _endorsements(evidence, name, items.MEDIA_TYPE_SNP_CERTIFICATE_TABLE):
        listed = snp_evidence_from_table(report, table)
        certificates, crls = certificates + listed.certificates, crls + listed.crls
    return verify_snp, SnpEvidence(report=report, certificates=certificates, crls=crls)


def _tdx(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx

    name = items.ITEM_TDX_QUOTE
    return verify_tdx, TdxEvidence(
        quote=_data(evidence, name),
        collateral=_collateral(evidence, name),
        certificates=_certificates(evidence, name),
        ccel_event_log=_optional(evidence, items.ITEM_TDX_EVENT_LOG),
    )


def _sgx(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx

    name = items.ITEM_SGX_QUOTE
    return verify_sgx, SgxEvidence(
        quote=_data(evidence, name),
        collateral=_collateral(evidence, name),
        certificates=_certificates(evidence, name),
    )


def _nitro(evidence: Items) -> tuple[Verify, object]:
    from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro

    return verify_nitro, NitroEvidence(document=_data(evidence, items.ITEM_NITRO_DOCUMENT))


HARDWARE: Final[Mapping[str, HardwarePlatform]] = {
    items.TEE_TYPE_SEV_SNP: HardwarePlatform(reference="snp", assemble=_snp),
    items.TEE_TYPE_TDX: HardwarePlatform(reference="tdx", assemble=_tdx),
    items.TEE_TYPE_SGX: HardwarePlatform(reference="sgx", assemble=_sgx),
    items.TEE_TYPE_NITRO: HardwarePlatform(reference="nitro", assemble=_nitro),
}
"""By ``tee_type``."""
