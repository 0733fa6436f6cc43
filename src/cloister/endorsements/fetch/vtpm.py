"""CA certificates above the attestation keys of Azure's and Google's vTPMs.

Their addresses stand in certificates that evidence brings, so anybody can choose them: only
hosts on a short list are asked. They are published over plain HTTP too, which does no harm:
what comes counts only if a pinned root signed it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.contents import parse_pem_chain
from cloister.endorsements.fetch.fetcher import accept
from cloister.endorsements.fetch.retrieve import HostRules, Retriever
from cloister.endorsements.genuine import issued_under
from cloister.endorsements.needs import issuer_addresses
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import FetchError, MalformedError

KINDS: Final = (ArtefactKind.AZURE_AK_INTERMEDIATE, ArtefactKind.GCP_AK_INTERMEDIATE)

MAX_ABOVE: Final = 2

AIA_HOSTS: Final = HostRules(
    allowed=frozenset(
        {
            "primary-cdn.pki.core.windows.net",
            "secondary-cdn.pki.core.windows.net",
            "crl.microsoft.com",
            "www.microsoft.com",
            "pki.goog",
            "privateca-content-62d71773-0000-21da-852e-f4f5e80d7778.storage.googleapis.com",
        }
    ),
    plain_http=True,
)
"""Hosts that AK certificates of the two clouds name."""


class AkIntermediates:
    """A `Fetcher` of certificates by address; give it a retriever with `AIA_HOSTS`.

    Where no pinned root issued the certificate, those between the two are fetched as well, by
    the address that each one names, and become the artefact's issuer chain.
    """

    def __init__(self, retriever: Retriever, *, roots: Roots) -> None:
        self._retriever = retriever
        self._roots = roots

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says."""
        found = self._get(request.key, request, at)
        above: list[x509.Certificate] = []
        lowest, kind = found, request.kind
        while not self._complete(lowest, kind) and len(above) < MAX_ABOVE:
            addresses = issuer_addresses(lowest)
            if not addresses:
                break
            lowest = self._get(addresses[0], request, at)
            above.append(lowest)
        return accept(
            request,
            found.public_bytes(Encoding.DER),
            source=request.key,
            at=at,
            issuer_chain=b"".join(one.public_bytes(Encoding.PEM) for one in above),
        )

    def _get(self, url: str, request: ArtefactRequest, at: datetime) -> x509.Certificate:
        answer = self._retriever.fetch(url, limit=MAX_BYTES[request.kind], at=at)
        try:
            return parse_certificate(_undo_pem(answer.body))
        except MalformedError as error:
            raise FetchError(f"{error} (from {url})", code="fetch.content") from None

    def _complete(self, certificate: x509.Certificate, kind: ArtefactKind) -> bool:
        azure = kind is ArtefactKind.AZURE_AK_INTERMEDIATE
        vendor = Vendor.AZURE_VTPM if azure else Vendor.GOOGLE_VTPM
        return issued_under(certificate, self._roots.intermediates, self._roots.vendor(vendor))


def _undo_pem(data: bytes) -> bytes:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        return data
    try:
        return parse_pem_chain(data)[0].public_bytes(Encoding.DER)
    except MalformedError:
        return data
