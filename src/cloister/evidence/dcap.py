"""DCAP quotes of SGX enclaves and TDX guests, versions 3, 4 and 5.

Sources: Intel "SGX ECDSA Quote Library Reference", appendix A (version 3), and Intel "TDX DCAP
Quoting Library API", appendix A (versions 4 and 5). All integers are little-endian; signatures
are r and s, keys x and y, each number 32 bytes big-endian. Nothing here is authenticated.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader
from cloister.evidence.sgx import ENCLAVE_REPORT_BYTES, EnclaveReport, parse_enclave_report
from cloister.evidence.tdx import TD10_REPORT_BYTES, TD15_REPORT_BYTES, TdReport, parse_td_report

MAX_QUOTE_BYTES: Final = 64 * 1024
"""Longest quote accepted, padding included; quotes with a chain take 5 KB, buffers up to 8 KB."""

MAX_QE_AUTH_BYTES: Final = 1024
"""Longest authentication data of the quoting enclave; Intel's has 32 bytes."""

MAX_CERTIFICATES: Final = 8
"""Certificates in one quote; Intel's chain has three."""

MAX_CERTIFICATE_BYTES: Final = 8192
"""Longest certificate, in DER."""

ECDSA_P256: Final = 2
"""The one kind of attestation key that is in use."""

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

MALFORMED: Final = "malformed"
UNSUPPORTED: Final = "quote_unsupported"
"""Code of the error for a quote of a kind that this version does not know."""

Tee: TypeAlias = Literal["sgx", "tdx"]
BodyType: TypeAlias = Literal["sgx", "td10", "td15"]

_HEADER_BYTES: Final = 48
_SIGNATURE_BYTES: Final = 64
_KEY_BYTES: Final = 64
_TEES: Final[dict[int, Tee]] = {0x00: "sgx", 0x81: "tdx"}
_BODIES: Final[dict[int, BodyType]] = {1: "sgx", 2: "td10", 3: "td15"}
_BODY_BYTES: Final[dict[BodyType, int]] = {
    "sgx": ENCLAVE_REPORT_BYTES,
    "td10": TD10_REPORT_BYTES,
    "td15": TD15_REPORT_BYTES,
}
_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n"
    rb"((?:[A-Za-z0-9+/=]{1,128}\r?\n){1,256})"
    rb"-----END CERTIFICATE-----(?:\r?\n)*"
)


class CertificationDataType(enum.IntEnum):
    """What a quote brings to find or prove the platform's key (version 4, appendix A.3.9)."""

    PPID_CLEAR = 1
    PPID_RSA2048 = 2
    PPID_RSA3072 = 3
    PCK_LEAF = 4
    PCK_CHAIN = 5
    QE_REPORT = 6
    PLATFORM_MANIFEST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationData:
    """Certification data of the types 1 to 5 and 7."""

    type: CertificationDataType
    data: bytes
    """As it arrived. Types 1 to 3 name the platform, and prove nothing about it."""
    certificates: tuple[bytes, ...]
    """The certificates in DER, leaf first; none but in types 4 and 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A quote: a report, signed by a key that a quoting enclave vouches for."""

    raw: bytes
    """Exactly the quote, without what pads its buffer."""
    version: int
    tee: Tee
    body_type: BodyType
    attestation_key_type: int
    qe_svn: int | None
    """Version 3 only, unsigned by anything but the quote itself; the QE report has the real one."""
    pce_svn: int | None
    """Version 3 only."""
    qe_vendor_id: bytes
    """16 bytes; always `INTEL_QE_VENDOR`."""
    user_data: bytes
    """20 bytes of the header; Intel's quoting enclave puts an identifier of the platform there."""
    body: EnclaveReport | TdReport
    signed: bytes
    """Header, body descriptor (version 5) and body: what `signature` covers."""
    signature: bytes
    """64 bytes, by `attestation_key`."""
    attestation_key: bytes
    """64 bytes: a point on P-256."""
    qe_report: EnclaveReport
    """Of the quoting enclave; its report data binds `attestation_key` and `qe_auth_data`."""
    qe_report_signature: bytes
    """64 bytes, by the platform's provisioning certification key (PCK)."""
    qe_auth_data: bytes
    certification: CertificationData
    trailing_bytes: int
    """Zero bytes that followed the quote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signatures:
    """The signed part's counterpart: appendix A, "ECDSA 256-bit Quote Signature Data Structure"."""

    signature: bytes
    attestation_key: bytes
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification: CertificationData


def parse_quote(data: bytes) -> Quote:
    """Decode a quote of version 3 (SGX), 4 or 5 (SGX and TDX) with an ECDSA-P256 key.

    Lengths inside the quote must fit exactly. Behind it, `data` may hold zeros, for quotes come
    in buffers of a fixed size; anything else is refused.

    Raises:
        MalformedError: and nothing else; code ``quote_unsupported`` where `data` may well be a
            quote, but of a version, kind, key or vendor that is not known here.
    """
    reader = ByteReader(data, what="the quote", code=MALFORMED, byteorder="little")
    if len(data) > MAX_QUOTE_BYTES:
        raise reader.fail(f"has {len(data)} bytes; at most {MAX_QUOTE_BYTES} are accepted")
    version, key_type = reader.integer(2), reader.integer(2)
    if version not in (3, 4, 5):
        raise _unsupported(f"is of version {version}")
    if key_type != ECDSA_P256:
        raise _unsupported(f"has an attestation key of type {key_type}")
    tee_type, reserved = reader.integer(4), reader.take(4)
    tee = _TEES.get(tee_type)
    if tee is None or (version == 3 and tee != "sgx"):
        raise _unsupported(f"is for an environment of type {tee_type}")
    if version != 3 and any(reserved):
        raise reader.fail("has a reserved field that is not zero")
    vendor, user_data = reader.take(16), reader.take(20)
    if vendor != INTEL_QE_VENDOR:
        raise _unsupported("comes from a quoting enclave that is not Intel's")
    body_type = _body_type(reader, version, tee)
    raw_body = reader.take(_BODY_BYTES[body_type])
    signed = data[: len(data) - reader.remaining]
    parts = _signatures(reader.sized(prefix=4, limit=MAX_QUOTE_BYTES), version)
    trailing = reader.remaining
    if any(reader.take(trailing)):
        raise reader.fail("is followed by bytes that are not zero")
    return Quote(
        raw=data[: len(data) - trailing],
        version=version,
        tee=tee,
        body_type=body_type,
        attestation_key_type=key_type,
        qe_svn=int.from_bytes(reserved[:2], "little") if version == 3 else None,
        pce_svn=int.from_bytes(reserved[2:], "little") if version == 3 else None,
        qe_vendor_id=vendor,
        user_data=user_data,
        body=parse_enclave_report(raw_body) if body_type == "sgx" else parse_td_report(raw_body),
        signed=signed,
        signature=parts.signature,
        attestation_key=parts.attestation_key,
        qe_report=parts.qe_report,
        qe_report_signature=parts.qe_report_signature,
        qe_auth_data=parts.qe_auth_data,
        certification=parts.certification,
        trailing_bytes=trailing,
    )


def parse_pem_certificates(data: bytes, *, limit: int = MAX_CERTIFICATES) -> tuple[bytes, ...]:
    """Undo the PEM of one to `limit` certificates (RFC 7468 section 3), and return their DER.

    Nothing may stand before, between or behind the blocks but line ends, and NUL bytes at the end
    (Intel's library ends the chain like a C string). The DER itself is not looked at.

    Raises MalformedError, and nothing else.
    """
    text, offset = data.rstrip(b"\0"), 0
    found: list[bytes] = []
    while offset < len(text):
        block = _PEM_BLOCK.match(text, offset)
        if block is None or len(found) == limit:
            raise MalformedError("the certificate chain is not PEM, or too long", code=MALFORMED)
        found.append(_decode(block[1]))
        offset = block.end()
    if not found:
        raise MalformedError("the certificate chain is empty", code=MALFORMED)
    return tuple(found)


def _body_type(reader: ByteReader, version: int, tee: Tee) -> BodyType:
    """Versions 3 and 4 imply the body; version 5 describes it: type (2 bytes), size (4)."""
    if version != 5:
        return "sgx" if tee == "sgx" else "td10"
    number, size = reader.integer(2), reader.integer(4)
    body_type = _BODIES.get(number)
    if body_type is None:
        raise _unsupported(f"has a body of type {number}")
    if (body_type == "sgx") != (tee == "sgx") or size != _BODY_BYTES[body_type]:
        raise reader.fail("has a body of another kind or size than it says")
    return body_type


def _signatures(data: bytes, version: int) -> _Signatures:
    reader = ByteReader(data, what="the quote's signature data", code=MALFORMED, byteorder="little")
    signature, key = reader.take(_SIGNATURE_BYTES), reader.take(_KEY_BYTES)
    inner = reader
    if version != 3:
        number, nested = reader.integer(2), reader.sized(prefix=4, limit=MAX_QUOTE_BYTES)
        reader.finish()
        if number != CertificationDataType.QE_REPORT:
            raise reader.fail("holds no report of the quoting enclave")
        inner = ByteReader(
            nested, what="the quote's QE report data", code=MALFORMED, byteorder="little"
        )
    qe_report = parse_enclave_report(inner.take(ENCLAVE_REPORT_BYTES))
    qe_signature = inner.take(_SIGNATURE_BYTES)
    auth_data = inner.sized(prefix=2, limit=MAX_QE_AUTH_BYTES)
    certification = _certification(inner)
    inner.finish()
    return _Signatures(
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=auth_data,
        certification=certification,
    )


def _certification(reader: ByteReader) -> CertificationData:
    number, data = reader.integer(2), reader.sized(prefix=4, limit=MAX_QUOTE_BYTES)
    try:
        kind = CertificationDataType(number)
    except ValueError:
        raise _unsupported(f"has certification data of type {number}") from None
    if kind is CertificationDataType.QE_REPORT:
        raise reader.fail("nests reports of quoting enclaves")
    certificates: tuple[bytes, ...] = ()
    if kind is CertificationDataType.PCK_CHAIN:
        certificates = parse_pem_certificates(data)
    elif kind is CertificationDataType.PCK_LEAF:
        certificates = parse_pem_certificates(data, limit=1)
    return CertificationData(type=kind, data=data, certificates=certificates)


def _decode(text: bytes) -> bytes:
    try:
        der = base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error:
        raise MalformedError("a certificate is not base64", code=MALFORMED) from None
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedError("a certificate is too long", code=MALFORMED)
    return der


def _unsupported(why: str) -> MalformedError:
    return MalformedError(f"the quote {why}, which is not supported", code=UNSUPPORTED)
