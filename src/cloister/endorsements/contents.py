"""What an artefact says of itself: its dates, its number, and that it is what was asked for.

Reading is not checking: signatures and chains are `cloister.endorsements.genuine`'s matter, and
again the verifier's.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.endorsements.artefact import (
    MAX_BYTES,
    MAX_ISSUER_CHAIN_BYTES,
    Artefact,
    ArtefactKind,
    ArtefactRequest,
)
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import MalformedError
from cloister.strictjson import expect_int, expect_object, expect_str, parse_json_object

MAX_CERTIFICATES: Final = 8
_CODE: Final = "endorsement.malformed"
_AMD: Final = "1.3.6.1.4.1.3704.1."
_SPL_OIDS: Final = {
    "blSPL": f"{_AMD}3.1",
    "teeSPL": f"{_AMD}3.2",
    "snpSPL": f"{_AMD}3.3",
    "ucodeSPL": f"{_AMD}3.8",
    "fmcSPL": f"{_AMD}3.9",
}
_HWID_OID: Final = f"{_AMD}4"
_SIGNED_JSON: Final = re.compile(
    rb'\s*\{\s*"(?P<name>tcbInfo|enclaveIdentity)"\s*:\s*(?P<body>\{.*\})\s*,'
    rb'\s*"signature"\s*:\s*"(?P<signature>[0-9a-fA-F]{128})"\s*\}\s*',
    re.DOTALL,
)
_XML_CERTIFICATE: Final = re.compile(
    rb"<(?:[A-Za-z0-9]+:)?X509Certificate>([A-Za-z0-9+/=\s]{1,16384})</"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Dates (aware, UTC) and number that an artefact bears."""

    issued_at: datetime
    valid_until: datetime | None
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedJson:
    """One of Intel's signed documents, in parts."""

    body: bytes
    """The exact bytes that the signature covers."""
    signature: bytes
    """64 bytes: r and s, big-endian."""


def make_artefact(
    request: ArtefactRequest,
    data: bytes,
    *,
    source: str,
    fetched_at: datetime,
    issuer_chain: bytes = b"",
) -> Artefact:
    """An artefact of `data`, if it decodes and answers `request`.

    Raises MalformedError (code ``endorsement.malformed``), and nothing else.
    """
    contents = read_contents(request, data)
    if len(issuer_chain) > MAX_ISSUER_CHAIN_BYTES:
        raise _malformed(request, "has an issuer chain that is too long")
    if issuer_chain:
        parse_pem_chain(issuer_chain)
    return Artefact(
        kind=request.kind,
        key=request.key,
        data=data,
        issuer_chain=issuer_chain,
        source=source,
        fetched_at=fetched_at,
        issued_at=contents.issued_at,
        valid_until=contents.valid_until,
        number=contents.number,
    )


def read_contents(request: ArtefactRequest, data: bytes) -> Contents:
    """Decode `data` as the kind that was asked for, and see that it is about the key.

    Raises MalformedError (code ``endorsement.malformed``), and nothing else.
    """
    if len(data) > MAX_BYTES[request.kind]:
        raise _malformed(request, f"has more than {MAX_BYTES[request.kind]} bytes")
    try:
        return _READERS[request.kind](request, data)
    except MalformedError as error:
        raise MalformedError(str(error), code=_CODE) from None


def parse_pem_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """Decode one to `MAX_CERTIFICATES` PEM certificates, in their order.

    Raises MalformedError, and nothing else.
    """
    if not 0 < data.count(b"-----BEGIN CERTIFICATE-----") <= MAX_CERTIFICATES:
        raise MalformedError(f"a chain has not 1 to {MAX_CERTIFICATES} PEM certificates")
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise MalformedError("a chain does not decode as PEM certificates") from None
    return tuple(parse_certificate(one.public_bytes(Encoding.DER)) for one in found)


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """Decode one DER revocation list (RFC 5280 section 5).

    Raises MalformedError, and nothing else.
    """
    try:
        crl = x509.load_der_x509_crl(data)
        _ = crl.issuer, crl.extensions, crl.last_update_utc, crl.next_update_utc
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise MalformedError("a revocation list does not decode") from None
    return crl


def parse_ocsp(data: bytes) -> ocsp.OCSPResponse:
    """Decode one DER OCSP response with exactly one answer (RFC 6960 section 4.2.1).

    Raises MalformedError, and nothing else.
    """
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise MalformedError(
                f"the OCSP responder answered {response.response_status.name.lower()}"
            )
        _ = response.serial_number, response.certificate_status, response.extensions
    except (ValueError, TypeError, x509.DuplicateExtension):
        raise MalformedError("an OCSP response does not decode") from None
    return response


def parse_signed_json(data: bytes, name: str) -> SignedJson:
    """Cut one of Intel's documents apart; `name` is ``tcbInfo`` or ``enclaveIdentity``.

    The signature covers the inner object as sent, so nothing is written anew.

    Raises MalformedError, and nothing else.
    """
    match = _SIGNED_JSON.fullmatch(data)
    if match is None or match["name"].decode() != name:
        raise MalformedError(f"there is no signed {name}")
    return SignedJson(body=match["body"], signature=binascii.unhexlify(match["signature"]))


def rim_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates inside a manifest's XML signature, leaf first; the XML is not parsed.

    Raises MalformedError, and nothing else.
    """
    found = _XML_CERTIFICATE.findall(data)
    if not 0 < len(found) <= MAX_CERTIFICATES or b"<!DOCTYPE" in data:
        raise MalformedError(f"the manifest does not hold 1 to {MAX_CERTIFICATES} certificates")
    try:
        return tuple(parse_certificate(base64.b64decode(text)) for text in found)
    except ValueError:
        raise MalformedError("a certificate of the manifest is not base64") from None


def _vcek(request: ArtefactRequest, data: bytes) -> Contents:
    certificate = parse_certificate(data)
    _, _, rest = request.key.partition("/")
    hwid, _, query = rest.partition("?")
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    # The hardware id comes bare or wrapped in an OCTET STRING, so only its end is fixed.
    wrong = [] if values.get(_HWID_OID, b"").endswith(bytes.fromhex(hwid)) else ["chip"]
    for part in query.split("&"):
        name, _, level = part.partition("=")
        if _der_integer(values.get(_SPL_OIDS[name], b"")) != int(level):
            wrong.append(name)
    if wrong:
        raise _malformed(request, f"is about another {', '.join(wrong)}")
    return _dates(certificate)


def _amd_chain(request: ArtefactRequest, data: bytes) -> Contents:
    chain = parse_pem_chain(data)
    intermediate, root = chain[0], chain[-1]
    signer = "SEV-VLEK-" if request.kind is ArtefactKind.AMD_VLEK_CHAIN else "SEV-"
    names = [_common_name(one.subject) for one in chain]
    if len(chain) != 2 or names != [f"{signer}{request.key}", f"ARK-{request.key}"]:
        raise _malformed(request, f"is a chain of {', '.join(names) or 'nothing'}")
    dates = [_dates(intermediate), _dates(root)]
    return Contents(
        issued_at=dates[0].issued_at,
        valid_until=min(one.valid_until for one in dates if one.valid_until),
    )


def _crl(request: ArtefactRequest, data: bytes) -> Contents:
    crl = parse_crl(data)
    wanted = {
        "platform": "Intel SGX PCK Platform CA",
        "processor": "Intel SGX PCK Processor CA",
        "root": "Intel SGX Root CA",
    }.get(request.key) or f"ARK-{request.key.partition('/')[0]}"
    if _common_name(crl.issuer) != wanted:
        raise _malformed(request, f"is a revocation list of {_common_name(crl.issuer)!r}")
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = None
    return Contents(issued_at=crl.last_update_utc, valid_until=crl.next_update_utc, number=number)


def _tcb_info(request: ArtefactRequest, data: bytes) -> Contents:
    tee, fmspc, _ = request.key.split("/")
    members = _body(data, "tcbInfo")
    # Version 2 of the document had no `id`, and was about SGX alone.
    found = expect_str(members.get("id", "SGX"), "id", limit=16)
    described = expect_str(members.get("fmspc"), "fmspc", limit=12).lower()
    if found != tee.upper() or described != fmspc:
        raise _malformed(request, f"is about {found} of FMSPC {described!r}")
    return _intel_dates(members)


def _qe_identity(request: ArtefactRequest, data: bytes) -> Contents:
    wanted = {"sgx": "QE", "tdx": "TD_QE"}[request.key.partition("/")[0]]
    members = _body(data, "enclaveIdentity")
    found = expect_str(members.get("id"), "id", limit=16)
    if found != wanted:
        raise _malformed(request, f"is the identity of {found!r}")
    return _intel_dates(members)


def _rim(request: ArtefactRequest, data: bytes) -> Contents:
    certificates = rim_certificates(data)
    if b"SoftwareIdentity" not in data:
        raise _malformed(request, "is no SWID document")
    # A manifest bears no dates; it is of use for as long as the certificates of its signature.
    return Contents(
        issued_at=certificates[0].not_valid_before_utc,
        valid_until=min(one.not_valid_after_utc for one in certificates),
    )


def _ocsp(_: ArtefactRequest, data: bytes) -> Contents:
    response = parse_ocsp(data)
    return Contents(issued_at=response.this_update_utc, valid_until=response.next_update_utc)


def _ca(request: ArtefactRequest, data: bytes) -> Contents:
    certificate = parse_certificate(data)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.value.ca:
        raise _malformed(request, "is not the certificate of a CA")
    return _dates(certificate)


_READERS: Final[dict[ArtefactKind, Callable[[ArtefactRequest, bytes], Contents]]] = {
    ArtefactKind.AMD_VCEK: _vcek,
    ArtefactKind.AMD_VCEK_CHAIN: _amd_chain,
    ArtefactKind.AMD_VLEK_CHAIN: _amd_chain,
    ArtefactKind.AMD_CRL: _crl,
    ArtefactKind.INTEL_TCB_INFO: _tcb_info,
    ArtefactKind.INTEL_QE_IDENTITY: _qe_identity,
    ArtefactKind.INTEL_PCK_CRL: _crl,
    ArtefactKind.INTEL_ROOT_CRL: _crl,
    ArtefactKind.NVIDIA_RIM: _rim,
    ArtefactKind.NVIDIA_OCSP: _ocsp,
    ArtefactKind.AZURE_AK_INTERMEDIATE: _ca,
    ArtefactKind.GCP_AK_INTERMEDIATE: _ca,
}


def _body(data: bytes, name: str) -> dict[str, object]:
    body = parse_signed_json(data, name).body
    return dict(expect_object(parse_json_object(body, limit=len(data), what=name), name))


def _intel_dates(members: dict[str, object]) -> Contents:
    return Contents(
        issued_at=_time(members.get("issueDate"), "issueDate"),
        valid_until=_time(members.get("nextUpdate"), "nextUpdate"),
        number=expect_int(members.get("tcbEvaluationDataNumber"), "tcbEvaluationDataNumber"),
    )


def _time(value: object, what: str) -> datetime:
    text = expect_str(value, what, limit=20)
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise MalformedError(f"{what} is no time in UTC") from None


def _dates(certificate: x509.Certificate) -> Contents:
    return Contents(
        issued_at=certificate.not_valid_before_utc, valid_until=certificate.not_valid_after_utc
    )


def _der_integer(value: bytes) -> int | None:
    """A DER INTEGER of one or two bytes, which is what 0 to 255 takes."""
    if len(value) < 3 or value[0] != 2 or value[1] != len(value) - 2 or value[1] > 2:
        return None
    return int.from_bytes(value[2:], "big")


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else "(unnamed)"


def _malformed(request: ArtefactRequest, why: str) -> MalformedError:
    return MalformedError(f"what came as {request.kind} {request.key} {why}", code=_CODE)
