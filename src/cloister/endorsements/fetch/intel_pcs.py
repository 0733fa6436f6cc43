"""Intel's Provisioning Certification Service, version 4, and any PCCS with the same paths.

The issuer chains come in header fields, URL-encoded PEM. A PCCS may serve what it fetched long
ago: `cloister endorsements status` shows the dates that the documents themselves bear.
"""

from __future__ import annotations

import binascii
from datetime import datetime
from typing import Final
from urllib.parse import unquote_to_bytes

from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.fetch.fetcher import accept
from cloister.endorsements.fetch.retrieve import Retriever, check_base
from cloister.endorsements.fetch.transport import HttpAnswer
from cloister.errors import FetchError

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL_URL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

KINDS: Final = (
    ArtefactKind.INTEL_TCB_INFO,
    ArtefactKind.INTEL_QE_IDENTITY,
    ArtefactKind.INTEL_PCK_CRL,
    ArtefactKind.INTEL_ROOT_CRL,
)

_CHAINS: Final = {
    ArtefactKind.INTEL_TCB_INFO: ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
    ArtefactKind.INTEL_QE_IDENTITY: ("sgx-enclave-identity-issuer-chain",),
    ArtefactKind.INTEL_PCK_CRL: ("sgx-pck-crl-issuer-chain",),
    ArtefactKind.INTEL_ROOT_CRL: (),
}
"""Version 4 has ``TCB-Info-Issuer-Chain``; version 3 and some caches the older name."""
_CRLS: Final = (ArtefactKind.INTEL_PCK_CRL, ArtefactKind.INTEL_ROOT_CRL)


class IntelPcs:
    """A `Fetcher` for Intel's service, or with `base_url` a PCCS."""

    def __init__(self, retriever: Retriever, *, base_url: str = INTEL_PCS) -> None:
        self._retriever = retriever
        self._base = check_base(base_url)

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says."""
        url = self._url(request)
        answer = self._retriever.fetch(url, limit=2 * MAX_BYTES[request.kind], at=at)
        data = _undo_hex(answer.body) if request.kind in _CRLS else answer.body
        return accept(
            request, data, source=url, at=at, issuer_chain=_issuer_chain(request, answer, url)
        )

    def _url(self, request: ArtefactRequest) -> str:
        parts = request.key.split("/")
        match request.kind:
            case ArtefactKind.INTEL_TCB_INFO:
                tee, fmspc, update = parts
                query = f"tcb?fmspc={fmspc.upper()}&update={update}"
            case ArtefactKind.INTEL_QE_IDENTITY:
                tee, update = parts
                query = f"qe/identity?update={update}"
            case ArtefactKind.INTEL_PCK_CRL:
                tee, query = "sgx", f"pckcrl?ca={request.key}&encoding=der"
            case ArtefactKind.INTEL_ROOT_CRL if self._base == INTEL_PCS:
                return INTEL_ROOT_CRL_URL
            case ArtefactKind.INTEL_ROOT_CRL:
                tee, query = "sgx", "rootcacrl"  # of a PCCS; Intel's own service has none
            case _:
                raise TypeError(f"Intel does not publish {request.kind}")
        return f"{self._base}/{tee}/certification/v4/{query}"


def _issuer_chain(request: ArtefactRequest, answer: HttpAnswer, url: str) -> bytes:
    names = _CHAINS[request.kind]
    if not names:
        return b""
    value = next((answer.headers[name] for name in names if name in answer.headers), None)
    if value is None:
        raise FetchError(
            f"the answer lacks the header field {names[0]} with its issuers (from {url})",
            code="fetch.content",
        )
    return unquote_to_bytes(value)


def _undo_hex(data: bytes) -> bytes:
    """A PCCS sends revocation lists as hexadecimal text, Intel as DER."""
    try:
        return binascii.unhexlify(data.strip())
    except ValueError:
        return data
