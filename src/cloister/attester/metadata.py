"""Azure's metadata service: certificates of this machine's processor, and TD quotes.

Sources: Microsoft, "Trusted Hardware Identity Management" (``/metadata/THIM/amd/certification``)
and "Azure confidential VMs, guest attestation" (``/acc/tdquote``: JSON with the TD report in
base64url without padding, answered by JSON with the quote in the same form).

The service answers on one link-local address, over plain HTTP: whoever answers is believed in
nothing. A wrong certificate or quote fails at the verifier.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.devices import answer_error
from cloister.endorsements.certificates import parse_certificates
from cloister.errors import FetchError, MalformedError
from cloister.strictjson import JsonObject, parse_json_object

ADDRESS: Final = "169.254.169.254"
TIMEOUT_S: Final = 10.0
MAX_RESPONSE_BYTES: Final = 256 * 1024
MAX_CHAIN: Final = 5

CERTIFICATION: Final = "/metadata/THIM/amd/certification"
TD_QUOTE: Final = "/acc/tdquote"
TD_REPORT_SIZE: Final = 1024

_WHAT: Final = "Azure's metadata service"


class MetadataService(Protocol):
    """One request to the metadata service."""

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a response with status 200, at most `MAX_RESPONSE_BYTES`; FetchError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLocalService:
    """The service at its fixed address: no name is resolved, no proxy and no redirect followed."""

    address: str = ADDRESS
    port: int = 80
    timeout_s: float = TIMEOUT_S

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """See `MetadataService.request`."""
        headers = {"Metadata": "true", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self.address, self.port, timeout=self.timeout_s)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_BYTES + 1)
        except TimeoutError:
            raise FetchError(f"{_WHAT} gave no answer in time", code="device.timeout") from None
        except (OSError, http.client.HTTPException) as error:
            why = type(error).__name__
            raise FetchError(f"{_WHAT} cannot be asked ({why})", code="device.io") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise FetchError(f"{_WHAT} answered with status {response.status}", code="device.io")
        if len(content) > MAX_RESPONSE_BYTES:
            raise answer_error(_WHAT, f"is longer than {MAX_RESPONSE_BYTES} bytes")
        return content


def fetch_vcek_chain(service: MetadataService) -> tuple[bytes, ...]:
    """The DER certificates of this processor's key (VCEK) up to AMD's root, the VCEK first.

    Raises:
        FetchError: the service does not answer, or not with certificates.
    """
    members = _object(service.request("GET", CERTIFICATION))
    try:
        texts = [_text(members, "vcekCert"), _text(members, "certificateChain")]
        chain = [entry for text in texts for entry in parse_certificates(text)]
    except MalformedError:
        raise answer_error(_WHAT, "holds no certificates") from None
    if len(chain) > MAX_CHAIN:
        raise answer_error(_WHAT, f"holds more than {MAX_CHAIN} certificates")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)


def fetch_td_quote(service: MetadataService, report: bytes) -> bytes:
    """Have `report` (a TDREPORT, 1024 bytes) signed.

    Raises:
        FetchError: the service does not answer, or not with a quote.
    """
    if len(report) != TD_REPORT_SIZE:
        raise ValueError(f"a TD report has {TD_REPORT_SIZE} bytes")
    text = base64.urlsafe_b64encode(report).rstrip(b"=").decode("ascii")
    answer = _object(service.request("POST", TD_QUOTE, json.dumps({"report": text}).encode()))
    quote = answer.get("quote")
    if not isinstance(quote, str):
        raise answer_error(_WHAT, "holds no quote")
    try:
        padded = quote.rstrip("=") + "=" * (-len(quote.rstrip("=")) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise answer_error(_WHAT, "holds no quote")
    return decoded


def _object(content: bytes) -> JsonObject:
    try:
        return parse_json_object(content, limit=MAX_RESPONSE_BYTES, what="it")
    except MalformedError:
        raise answer_error(_WHAT, "is not JSON") from None


def _text(members: JsonObject, name: str) -> bytes:
    value = members.get(name)
    if not isinstance(value, str):
        raise MalformedError(f"no {name}")
    return value.encode()
