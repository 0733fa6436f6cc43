"""CA certificates above the attestation keys of Azure's and Google's vTPMs.

Their addresses stand in certificates that evidence brings, so anybody can choose them: only
hosts on a short list are asked. They are published over plain HTTP too, which does no harm:
what comes counts only if a pinned root signed it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.contents import parse_pem_chain
from cloister.endorsements.fetch.fetcher import accept
from cloister.endorsements.fetch.retrieve import HostRules, Retriever
from cloister.errors import MalformedError

KINDS: Final = (ArtefactKind.AZURE_AK_INTERMEDIATE, ArtefactKind.GCP_AK_INTERMEDIATE)

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
    """A `Fetcher` of certificates by address; give it a retriever with `AIA_HOSTS`."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says."""
        answer = self._retriever.fetch(request.key, limit=MAX_BYTES[request.kind], at=at)
        return accept(request, _undo_pem(answer.body), source=request.key, at=at)


def _undo_pem(data: bytes) -> bytes:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        return data
    try:
        return parse_pem_chain(data)[0].public_bytes(Encoding.DER)
    except MalformedError:
        return data
