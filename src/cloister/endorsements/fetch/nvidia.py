"""NVIDIA's manifests (RIM service) and its OCSP responder.

The RIM service answers with JSON that holds the manifest in base64 and its SHA-256, which is
compared: it finds damage, while only the XML signature inside shows who wrote the manifest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements import ocsp
from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.fetch.fetcher import accept
from cloister.endorsements.fetch.retrieve import Retriever, check_base
from cloister.errors import AuthenticationError, ConfigurationError, FetchError, MalformedError
from cloister.strictjson import decode_base64, parse_json_object

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"

_OCSP_HEADERS: Final = {
    "content-type": "application/ocsp-request",
    "accept": "application/ocsp-response",
}


class NvidiaRim:
    """A `Fetcher` of manifests."""

    def __init__(self, retriever: Retriever, *, base_url: str = NVIDIA_RIM) -> None:
        self._retriever = retriever
        self._base = check_base(base_url)

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says."""
        url = f"{self._base}/v1/rim/{request.key}"
        limit = MAX_BYTES[request.kind]
        answer = self._retriever.fetch(url, limit=2 * limit, at=at)
        try:
            data = _manifest(answer.body, request.key, limit)
        except MalformedError as error:
            raise FetchError(f"{error} (from {url})", code="fetch.content") from None
        return accept(request, data, source=url, at=at)


class NvidiaOcsp:
    """A `Fetcher` of OCSP responses.

    A response is authenticated here already, since the question holds all that is needed. One
    that says ``unknown`` is an error: it is not to displace an answer that says more.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        base_url: str = NVIDIA_OCSP,
        authorities: tuple[x509.Certificate, ...] = (),
        nonce: Callable[[], bytes] = lambda: secrets.token_bytes(ocsp.NONCE_BYTES),
    ) -> None:
        self._retriever = retriever
        self._url = check_base(base_url) + "/"
        self._authorities = authorities
        self._nonce = nonce

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """As `Fetcher` says; needs a request from `nvidia_ocsp`, with its certificates."""
        if len(request.material) != 2:
            raise ConfigurationError(
                "an OCSP question takes the certificate and its issuer: name the evidence that"
                " brings them",
                code="endorsement.evidence",
            )
        certificate, issuer = (parse_certificate(one) for one in request.material)
        nonce = self._nonce()
        answer = self._retriever.fetch(
            self._url,
            limit=MAX_BYTES[request.kind],
            at=at,
            body=ocsp.build_question(certificate, issuer, nonce),
            headers=_OCSP_HEADERS,
        )
        try:
            checked = ocsp.check_answer(
                answer.body,
                certificate,
                issuer,
                at=at,
                authorities=self._authorities,
                nonce=nonce,
            )
        except (AuthenticationError, MalformedError) as error:
            raise FetchError(f"{error} (from {self._url})", code="fetch.content") from None
        if checked.status is ocsp.CertificateStatus.UNKNOWN:
            raise FetchError(
                f"the responder {self._url} does not know the certificate", code="fetch.content"
            )
        return accept(
            request,
            answer.body,
            source=self._url,
            at=at,
            issuer_chain=b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, issuer)),
        )


RIM_KINDS: Final = (ArtefactKind.NVIDIA_RIM,)
OCSP_KINDS: Final = (ArtefactKind.NVIDIA_OCSP,)


def _manifest(body: bytes, rim_id: str, limit: int) -> bytes:
    members = parse_json_object(body, limit=len(body), what="the answer of the RIM service")
    data = decode_base64(members.get("rim"), limit=limit, what="the manifest")
    if members.get("id") != rim_id:
        raise MalformedError("the answer of the RIM service is about another manifest")
    if members.get("sha256") != hashlib.sha256(data).hexdigest():
        raise MalformedError("the manifest is not the one whose SHA-256 the RIM service gives")
    return data
