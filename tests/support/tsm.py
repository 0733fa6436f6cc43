"""configfs-tsm with one entry, whose reports a simulated vendor issues."""

from __future__ import annotations

from collections.abc import Callable

from cloister.evidence import items
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, EvidenceItem
from cloister.evidence.snp import CertificateKind
from cloister.testing.simulated_snp import certificate_table


class Entries:
    """One entry; what is written into it goes to the vendor."""

    def __init__(self, provider: str, issue: Callable[[bytes], bytes], auxblob: bytes) -> None:
        self.provider = provider
        self.issue = issue
        self.auxblob = auxblob
        self.inblob = b""
        self.generation = 0

    def make(self, name: str) -> None:
        self.generation = 0

    def remove(self, name: str) -> None:
        pass

    def write(self, name: str, attribute: str, data: bytes) -> None:
        self.inblob, self.generation = data, self.generation + 1

    def read(self, name: str, attribute: str, *, limit: int) -> bytes:
        match attribute:
            case "provider":
                return self.provider.encode()
            case "generation":
                return str(self.generation).encode()
            case "outblob":
                return self.issue(self.inblob[:32])
        return self.auxblob


def table(item: EvidenceItem) -> bytes:
    """The host's table with what vouches for a simulated report."""
    certificates = [
        entry.data for entry in item.endorsements if entry.media_type == MEDIA_TYPE_CERTIFICATE
    ]
    (crl,) = (entry.data for entry in item.endorsements if entry.media_type == items.MEDIA_TYPE_CRL)
    kinds = (CertificateKind.VCEK, CertificateKind.ASK, CertificateKind.ARK)
    found = dict(zip(kinds, certificates, strict=False))
    return certificate_table({**found, CertificateKind.CRL: crl}, pad_to=0x4000)
