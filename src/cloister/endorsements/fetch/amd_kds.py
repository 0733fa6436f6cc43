"""AMD's Key Distribution Service (AMD 57230, "VCEK Certificate and KDS Interface").

The service answers about one VCEK in ten seconds for each address that asks, and says 429 to
the rest: cache what it gives, and have workers ship their own VCEK.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.fetch.fetcher import accept
from cloister.endorsements.fetch.retrieve import Retriever, check_base

AMD_KDS: Final = "https://kdsintf.amd.com"

KINDS: Final = (
    ArtefactKind.AMD_VCEK,
    ArtefactKind.AMD_VCEK_CHAIN,
    ArtefactKind.AMD_VLEK_CHAIN,
    ArtefactKind.AMD_CRL,
)


class AmdKds:
    """A `Fetcher` for AMD's service, or a cache in front of it with the same paths."""

    def __init__(self, retriever: Retriever, *, base_url: str = AMD_KDS) -> None:
        self._retriever = retriever
        self._base = check_base(base_url)

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says; the path's form is AMD 57230 sections 4.1 to 4.4."""
        url = self._base + _path(request)
        answer = self._retriever.fetch(url, limit=MAX_BYTES[request.kind], at=at)
        return accept(request, answer.body, source=url, at=at)


def _path(request: ArtefactRequest) -> str:
    match request.kind:
        case ArtefactKind.AMD_VCEK:
            return f"/vcek/v1/{request.key}"
        case ArtefactKind.AMD_VCEK_CHAIN:
            return f"/vcek/v1/{request.key}/cert_chain"
        case ArtefactKind.AMD_VLEK_CHAIN:
            return f"/vlek/v1/{request.key}/cert_chain"
        case ArtefactKind.AMD_CRL:
            product, _, signer = request.key.partition("/")
            return f"/{signer}/v1/{product}/crl"
        case _:
            raise TypeError(f"AMD does not publish {request.kind}")
