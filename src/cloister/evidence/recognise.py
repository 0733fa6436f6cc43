"""Tells what a file of evidence, or of what vouches for it, seems to be.

A guess from lengths and leading bytes, for people with a file and no label; the parser of the
kind guessed decides. Text that holds binary evidence (hexadecimal, base64) is unwrapped first.
"""

from __future__ import annotations

import binascii
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 16 * 1024 * 1024
"""Longest input looked at."""


class Kind(enum.StrEnum):
    """What evidence, endorsements and results look like on disk."""

    SNP_REPORT = "snp-report"
    DCAP_QUOTE = "dcap-quote"
    NITRO_DOCUMENT = "nitro-document"
    TPM_QUOTE = "tpm-quote"
    TPM_SIGNATURE = "tpm-signature"
    RSA_SIGNATURE = "rsa-signature"
    """As many bytes as an RSA signature has, and nothing that says more."""
    TPM_PUBLIC = "tpm-public"
    TPM_PCR_FILE = "tpm2-tools-pcr-file"
    PCR_VALUES = "pcr-values"
    EVENT_LOG = "event-log"
    DSTACK_EVENT_LOG = "dstack-event-log"
    DSTACK_COMPOSE = "dstack-compose"
    HCL_REPORT = "azure-hcl-report"
    GPU_REPORT = "nvidia-spdm-report"
    GPU_EVIDENCE_LIST = "nvidia-evidence-list"
    RIM = "nvidia-rim"
    COLLATERAL = "intel-collateral"
    PCS_RESPONSE = "intel-pcs-response"
    CERTIFICATES = "certificates"
    REVOCATION_LIST = "revocation-list"
    OCSP_RESPONSE = "ocsp-response"
    PUBLIC_KEY = "public-key"
    ATTESTATION_REPORT = "attestation-report"
    POLICY = "policy"
    REFERENCE_VALUES = "reference-values"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A guess, and the bytes to give to the parser."""

    kind: Kind
    data: bytes
    """The input, its text encoding undone."""
    encoding: str
    """``binary``, ``hexadecimal`` or ``base64``."""


def recognise(data: bytes) -> Recognised:
    """Guess what `data` is. Never raises: what nothing fits is `Kind.UNKNOWN`."""
    if len(data) > MAX_BYTES:
        return Recognised(kind=Kind.UNKNOWN, data=data, encoding="binary")
    found = _kind(data)
    if found is not Kind.UNKNOWN:
        return Recognised(kind=found, data=data, encoding="binary")
    for encoding, decode in (("hexadecimal", _hexadecimal), ("base64", _base64)):
        decoded = decode(data)
        if decoded is not None and (inner := _kind(decoded)) is not Kind.UNKNOWN:
            return Recognised(kind=inner, data=decoded, encoding=encoding)
    return Recognised(kind=Kind.UNKNOWN, data=data, encoding="binary")


def _kind(data: bytes) -> Kind:
    return next((kind for kind, fits in _SIGNS if fits(data)), Kind.UNKNOWN)


def _is_snp(data: bytes) -> bool:
    """A version from 2 on, little-endian, and exactly the report's length."""
    return len(data) == 1184 and 1 < int.from_bytes(data[:4], "little") < 256


_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def _is_dcap(data: bytes) -> bool:
    return data[:2] in {b"\x03\x00", b"\x04\x00", b"\x05\x00"} and data[12:28] == _INTEL_QE_VENDOR


def _is_nitro(data: bytes) -> bool:
    """COSE_Sign1 with the protected header {1: -35}, tagged or not, perhaps in a wrapper."""
    return b"\x44\xa1\x01\x38\x22" in data[:64]


def _is_event_log(data: bytes) -> bool:
    """A first event of type EV_NO_ACTION, or any of the old format with a plausible type."""
    return data[4:8] == b"\x03\x00\x00\x00" and b"Spec ID Event" in data[:64]


def _is_old_event_log(data: bytes) -> bool:
    return len(data) > 64 and data[:3] == bytes(3) and data[4:8] == b"\x08\x00\x00\x00"


def _is_pcr_file(data: bytes) -> bool:
    """TPML_PCR_SELECTION as C lays it out: a small count, then a hash algorithm."""
    return (
        len(data) > 132
        and 1 <= int.from_bytes(data[:4], "little") <= 16
        and data[4:6] in {b"\x04\x00", b"\x0b\x00", b"\x0c\x00", b"\x0d\x00"}
        and 1 <= data[6] <= 4
    )


def _is_public(data: bytes) -> bool:
    """TPMT_PUBLIC of an RSA or ECC key, or TPM2B_PUBLIC around it."""
    inner = data[2:] if int.from_bytes(data[:2], "big") == len(data) - 2 else data
    return len(inner) > 40 and inner[:2] in {b"\x00\x01", b"\x00\x23"} and inner[2:3] == b"\x00"


def _pem(label: bytes) -> Callable[[bytes], bool]:
    def fits(data: bytes) -> bool:
        begin = data.find(b"-----BEGIN ", 0, 65536)
        return begin >= 0 and data[begin + 11 :].startswith(label) and data[:1] != b"{"

    return fits


def _is_certificate(data: bytes) -> bool:
    """SEQUENCE { SEQUENCE { [0] version … } …: RFC 5280 section 4.1."""
    return data[:2] == b"\x30\x82" and data[4:6] == b"\x30\x82" and data[8:10] == b"\xa0\x03"


def _is_crl(data: bytes) -> bool:
    """SEQUENCE { SEQUENCE { INTEGER 1 …: a list of version 2, RFC 5280 section 5.1."""
    return data[:1] == b"\x30" and b"\x02\x01\x01\x30" in data[2:16]


def _is_ocsp(data: bytes) -> bool:
    """SEQUENCE { ENUMERATED successful, [0] …: RFC 6960 section 4.2.1."""
    return data[:2] == b"\x30\x82" and data[4:8] == b"\x0a\x01\x00\xa0"


def _is_rim(data: bytes) -> bool:
    head = data[:512]
    return head.lstrip()[:1] == b"<" and b"SoftwareIdentity" in head


def _json_with(*names: str) -> Callable[[bytes], bool]:
    def fits(data: bytes) -> bool:
        members = _json(data)
        return isinstance(members, dict) and all(name in members for name in names)

    return fits


def _json_list_with(*names: str) -> Callable[[bytes], bool]:
    def fits(data: bytes) -> bool:
        entries = _json(data)
        first = entries[0] if isinstance(entries, list) and entries else None
        return isinstance(first, dict) and all(name in first for name in names)

    return fits


def _is_pcr_values(data: bytes) -> bool:
    members = _json(data)
    return (
        isinstance(members, dict)
        and bool(members)
        and members.keys() <= {"sha1", "sha256", "sha384", "sha512"}
    )


def _json(data: bytes) -> object:
    """The document, or ``None``: a look only, which no decision rests on."""
    if data.lstrip()[:1] not in {b"{", b"["}:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _hexadecimal(data: bytes) -> bytes | None:
    try:
        return binascii.unhexlify(b"".join(data.split()).removeprefix(b"0x"))
    except ValueError:
        return None


def _base64(data: bytes) -> bytes | None:
    text = b"".join(data.split()).replace(b"-", b"+").replace(b"_", b"/")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None


_SIGNATURE_HEADS: Final = frozenset(
    scheme + algorithm
    for scheme in (b"\x00\x14", b"\x00\x16", b"\x00\x18")
    for algorithm in (b"\x00\x04", b"\x00\x0b", b"\x00\x0c", b"\x00\x0d")
)
"""TPMT_SIGNATURE: RSASSA, RSAPSS or ECDSA, then the hash."""

_SIGNS: Final[tuple[tuple[Kind, Callable[[bytes], bool]], ...]] = (
    (Kind.TPM_QUOTE, lambda data: data[:6] == b"\xffTCG\x80\x18"),
    (Kind.HCL_REPORT, lambda data: data[:4] == b"HCLA"),
    (Kind.DCAP_QUOTE, _is_dcap),
    (Kind.SNP_REPORT, _is_snp),
    (Kind.NITRO_DOCUMENT, _is_nitro),
    (Kind.GPU_REPORT, lambda data: data[:2] == b"\x11\xe0" and len(data) > 150),
    (Kind.EVENT_LOG, _is_event_log),
    (Kind.TPM_SIGNATURE, lambda data: data[:4] in _SIGNATURE_HEADS),
    (Kind.TPM_PCR_FILE, _is_pcr_file),
    (Kind.TPM_PUBLIC, _is_public),
    (Kind.CERTIFICATES, _pem(b"CERTIFICATE-----")),
    (Kind.REVOCATION_LIST, _pem(b"X509 CRL-----")),
    (Kind.PUBLIC_KEY, _pem(b"PUBLIC KEY-----")),
    (Kind.CERTIFICATES, _is_certificate),
    (Kind.REVOCATION_LIST, _is_crl),
    (Kind.OCSP_RESPONSE, _is_ocsp),
    (Kind.RIM, _is_rim),
    (Kind.COLLATERAL, _json_with("tcb_info", "qe_identity")),
    (Kind.PCS_RESPONSE, _json_with("signature", "tcbInfo")),
    (Kind.PCS_RESPONSE, _json_with("signature", "enclaveIdentity")),
    (Kind.ATTESTATION_REPORT, _json_with("api_version", "attestation")),
    (Kind.REFERENCE_VALUES, _json_with("format", "components")),
    (Kind.POLICY, _json_with("accept_development", "accept_debug")),
    (Kind.DSTACK_EVENT_LOG, _json_list_with("imr", "event_type")),
    (Kind.GPU_EVIDENCE_LIST, _json_list_with("certificate", "evidence")),
    (Kind.GPU_EVIDENCE_LIST, _json_with("evidence_list")),
    (Kind.DSTACK_COMPOSE, _json_with("manifest_version")),
    (Kind.PCR_VALUES, _is_pcr_values),
    (Kind.EVENT_LOG, _is_old_event_log),
    (Kind.RSA_SIGNATURE, lambda data: len(data) in {256, 384, 512}),
)
