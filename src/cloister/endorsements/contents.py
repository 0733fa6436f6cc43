"""What an artefact says of itself: its dates, its number, and that it is what was asked for.

Reading is not checking: signatures and chains are `cloister.endorsements.genuine`'s matter, and
again the verifier's.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.endorsements.amd import common_name, parse_endorsement_key
from cloister.endorsements.artefact import (
    MAX_BYTES,
    MAX_ISSUER_CHAIN_BYTES,
    Artefact,
    ArtefactKind,
    ArtefactRequest,
    amd_vcek,
)
from cloister.endorsements.certificates import parse_certificate, parse_certificates
from cloister.endorsements.intel import parse_crl
from cloister.endorsements.intel_tcb_info import QE, TD_QE, parse_qe_identity, parse_tcb_info
from cloister.endorsements.ocsp import parse_ocsp
from cloister.errors import MalformedError
from cloister.evidence.rim import parse_rim

MAX_CERTIFICATES: Final = 8
_CODE: Final = "endorsement.malformed"
_SIGNED_JSON: Final = re.compile(
    rb'\s*\{\s*"(?P<name>tcbInfo|enclaveIdentity)"\s*:\s*(?P<body>\{.*\})\s*,'
    rb'\s*"signature"\s*:\s*"(?P<signature>[0-9a-fA-F]{128})"\s*\}\s*',
    re.DOTALL,
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
        if not issuer_chain.isascii():  # between certificates, where nobody looks
            raise _malformed(request, "has an issuer chain that is not PEM")
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
    return parse_certificates(data)


def parse_signed_json(data: bytes, name: str) -> SignedJson:
    """Cut one of Intel's documents apart; `name` is ``tcbInfo`` or ``enclaveIdentity``.

    The signature covers the inner object as sent, so nothing is written anew.

    Raises MalformedError, and nothing else.
    """
    match = _SIGNED_JSON.fullmatch(data)
    if match is None or match["name"].decode() != name:
        raise MalformedError(f"there is no signed {name}")
    return SignedJson(body=match["body"], signature=binascii.unhexlify(match["signature"]))


def _vcek(request: ArtefactRequest, data: bytes) -> Contents:
    key = parse_endorsement_key(parse_certificate(data))
    if key.hwid is None:
        raise _malformed(request, "is the certificate of a VLEK")
    found = amd_vcek(key.product, key.hwid, key.tcb)
    if found != request:
        raise _malformed(request, f"is {found.key}: another chip or TCB")
    return _dates(key.certificate)


def _amd_chain(request: ArtefactRequest, data: bytes) -> Contents:
    chain = parse_pem_chain(data)
    intermediate, root = chain[0], chain[-1]
    signer = "SEV-VLEK-" if request.kind is ArtefactKind.AMD_VLEK_CHAIN else "SEV-"
    names = [common_name(one.subject) or "(unnamed)" for one in chain]
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
    if common_name(crl.issuer) != wanted:
        raise _malformed(request, f"is a revocation list of {common_name(crl.issuer)!r}")
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = None
    return Contents(issued_at=crl.last_update_utc, valid_until=crl.next_update_utc, number=number)


def _tcb_info(request: ArtefactRequest, data: bytes) -> Contents:
    tee, fmspc, _ = request.key.split("/")
    found = parse_tcb_info(parse_signed_json(data, "tcbInfo").body)
    if found.id != tee.upper() or found.fmspc.hex() != fmspc:
        raise _malformed(request, f"is about {found.id} of FMSPC {found.fmspc.hex()}")
    return Contents(
        issued_at=found.issue_date,
        valid_until=found.next_update,
        number=found.tcb_evaluation_data_number,
    )


def _qe_identity(request: ArtefactRequest, data: bytes) -> Contents:
    wanted = {"sgx": QE, "tdx": TD_QE}[request.key.partition("/")[0]]
    found = parse_qe_identity(parse_signed_json(data, "enclaveIdentity").body)
    if found.id != wanted:
        raise _malformed(request, f"is the identity of {found.id}")
    return Contents(
        issued_at=found.issue_date,
        valid_until=found.next_update,
        number=found.tcb_evaluation_data_number,
    )


def _rim(_: ArtefactRequest, data: bytes) -> Contents:
    certificates = tuple(map(parse_certificate, parse_rim(data).certificates))
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


def _dates(certificate: x509.Certificate) -> Contents:
    return Contents(
        issued_at=certificate.not_valid_before_utc, valid_until=certificate.not_valid_after_utc
    )


def _malformed(request: ArtefactRequest, why: str) -> MalformedError:
    return MalformedError(f"what came as {request.kind} {request.key} {why}", code=_CODE)
