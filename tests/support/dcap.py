"""DCAP quotes put together byte by byte, unsigned, and signed ones with parts replaced."""

from __future__ import annotations

import base64
import struct

from cloister.evidence.dcap import INTEL_QE_VENDOR, parse_quote

SGX, TDX = 0x00, 0x81
PCK_CHAIN, QE_REPORT = 5, 6


def enclave_report(**changed: bytes) -> bytes:
    """384 bytes; fields by the name of their offset, as in ``at_48=b"..."``."""
    report = bytearray(384)
    report[0:16] = bytes(range(16))
    report[48:64] = struct.pack("<QQ", 0x05, 0xE7)
    report[64:96] = b"\x11" * 32
    report[128:160] = b"\x22" * 32
    report[256:262] = struct.pack("<HHH", 1, 2, 3)
    report[320:384] = b"\x33" * 64
    for name, value in changed.items():
        offset = int(name.removeprefix("at_"))
        report[offset : offset + len(value)] = value
    return bytes(report)


def td_report(*, later: bool = False, attributes: int = 1 << 28) -> bytes:
    """584 bytes, or 648 for TDX 1.5; every field holds a byte of its own."""
    fields = [
        b"\x01" * 16,
        b"\x02" * 48,
        bytes(48),
        bytes(8),
        attributes.to_bytes(8, "little"),
        b"\x06" * 8,
        *(bytes([number]) * 48 for number in range(7, 15)),
        b"\x0f" * 64,
        *((b"\x10" * 16, b"\x11" * 48) if later else ()),
    ]
    return b"".join(fields)


def pem(*certificates: bytes) -> bytes:
    """PEM of anything at all."""
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(certificate)
        + b"-----END CERTIFICATE-----\n"
        for certificate in certificates
    )


def header(
    version: int,
    tee: int,
    *,
    key_type: int = 2,
    reserved: bytes = bytes(4),
    vendor: bytes = INTEL_QE_VENDOR,
) -> bytes:
    """48 bytes."""
    return struct.pack("<HHI", version, key_type, tee) + reserved + vendor + b"\x44" * 20


def certification(number: int, data: bytes) -> bytes:
    """Type, size and data."""
    return struct.pack("<HI", number, len(data)) + data


def signature_data(
    version: int,
    *,
    auth: bytes = b"\x55" * 32,
    certificates: bytes | None = None,
    outer: int = QE_REPORT,
    inner_tail: bytes = b"",
    outer_tail: bytes = b"",
) -> bytes:
    """What follows the length: signatures, key, report of the quoting enclave, certificates."""
    found = certification(PCK_CHAIN, pem(b"leaf", b"ca", b"root") + b"\0")
    vouching = (
        enclave_report()
        + b"\x66" * 64
        + struct.pack("<H", len(auth))
        + auth
        + (found if certificates is None else certificates)
        + inner_tail
    )
    start = b"\x77" * 64 + b"\x88" * 64
    if version == 3:
        return start + vouching
    return start + certification(outer, vouching) + outer_tail


def quote(
    version: int = 4,
    *,
    tee: int | None = None,
    head: bytes | None = None,
    body: bytes | None = None,
    descriptor: bytes | None = None,
    signatures: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A quote of an enclave (version 3) or guest (4, 5: TDX 1.0 and 1.5), unless told otherwise."""
    tee = (SGX if version == 3 else TDX) if tee is None else tee
    if body is None:
        body = enclave_report() if tee == SGX else td_report(later=version == 5)
    if descriptor is None:
        number = 1 if tee == SGX else 3 if len(body) == 648 else 2
        descriptor = struct.pack("<HI", number, len(body)) if version == 5 else b""
    signatures = signature_data(version) if signatures is None else signatures
    return (
        (header(version, tee) if head is None else head)
        + descriptor
        + body
        + struct.pack("<I", len(signatures))
        + signatures
        + tail
    )


def reassembled(
    original: bytes,
    *,
    signed: bytes | None = None,
    signature: bytes | None = None,
    key: bytes | None = None,
    qe_report: bytes | None = None,
    qe_signature: bytes | None = None,
    auth: bytes | None = None,
    certificates: tuple[int, bytes] | None = None,
) -> bytes:
    """The quote `original` with parts of it replaced, and nothing signed anew."""
    parsed = parse_quote(original)
    auth = parsed.qe_auth_data if auth is None else auth
    number, data = certificates or (parsed.certification.type, parsed.certification.data)
    vouching = b"".join(
        (
            qe_report or parsed.qe_report.raw,
            qe_signature or parsed.qe_report_signature,
            struct.pack("<H", len(auth)),
            auth,
            certification(number, data),
        )
    )
    if parsed.version > 3:
        vouching = certification(QE_REPORT, vouching)
    signatures = (signature or parsed.signature) + (key or parsed.attestation_key) + vouching
    return (signed or parsed.signed) + struct.pack("<I", len(signatures)) + signatures
