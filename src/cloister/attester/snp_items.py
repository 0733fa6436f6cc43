"""Evidence items of an SNP report, from whichever way it was fetched."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.devices import answer_error
from cloister.endorsements.certificates import parse_certificates, parse_crl
from cloister.errors import MalformedError
from cloister.evidence.items import (
    ITEM_SNP_REPORT,
    MEDIA_TYPE_CRL,
    MEDIA_TYPE_SNP_CERTIFICATE_TABLE,
    MEDIA_TYPE_SNP_REPORT,
)
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, Endorsement, EvidenceItem
from cloister.evidence.snp import CertificateKind, parse_certificate_table

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


_ORDER: Final = (
    CertificateKind.VCEK,
    CertificateKind.VLEK,
    CertificateKind.ASK,
    CertificateKind.ARK,
)


def endorsements(table: bytes) -> tuple[Endorsement, ...]:
    """What the host's table holds, the chip's certificate first; nothing where it is empty.

    A table that does not decode, or whose certificates do not, goes out as it is: what to
    make of it is the verifier's business, which believes neither form.
    """
    try:
        found = {entry.kind: entry.data for entry in parse_certificate_table(table)}
        certificates = tuple(_der(found[kind]) for kind in _ORDER if kind in found)
        if CertificateKind.CRL not in found:
            return certificates
        crl = parse_crl(found[CertificateKind.CRL]).public_bytes(Encoding.DER)
        return (*certificates, Endorsement(media_type=MEDIA_TYPE_CRL, data=crl))
    except MalformedError:
        return (Endorsement(media_type=MEDIA_TYPE_SNP_CERTIFICATE_TABLE, data=table),)


def _der(certificate: bytes) -> Endorsement:
    # Hosts put in DER or PEM, as their administrator found it.
    (parsed,) = parse_certificates(certificate)[:1]
    return Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=parsed.public_bytes(Encoding.DER))
