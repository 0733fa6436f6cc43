"""Evidence items of an SNP report, from whichever way it was fetched."""

from __future__ import annotations

from typing import Final

from cloister.attester.devices import answer_error
from cloister.evidence.items import (
    ITEM_SNP_REPORT,
    MEDIA_TYPE_SNP_CERTIFICATE_TABLE,
    MEDIA_TYPE_SNP_REPORT,
)
from cloister.evidence.report import Endorsement, EvidenceItem

REPORT_SIZE: Final = 1184
"""ATTESTATION_REPORT (AMD 56860, table 23)."""


def snp_items(report: bytes, table: bytes) -> dict[str, EvidenceItem]:
    """Items of `report`, with the host's certificate `table` as what vouches for it.

    The kernel hands out the report without padding since 6.7; more than its size must be zero.

    Raises:
        FetchError: it is no report (code ``device.answer``).
    """
    body, rest = report[:REPORT_SIZE], report[REPORT_SIZE:]
    if len(body) != REPORT_SIZE or any(rest):
        raise answer_error("the secure processor", f"is no report of {REPORT_SIZE} bytes")
    return {
        ITEM_SNP_REPORT: EvidenceItem(
            media_type=MEDIA_TYPE_SNP_REPORT, data=body, endorsements=endorsements(table)
        )
    }


def endorsements(table: bytes) -> tuple[Endorsement, ...]:
    """What the host's certificate table holds; nothing where it is absent or all zero."""
    if not any(table):
        return ()
    return (Endorsement(media_type=MEDIA_TYPE_SNP_CERTIFICATE_TABLE, data=table),)
