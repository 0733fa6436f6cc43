"""SPDM 1.1 measurements as NVIDIA's devices report them: one request, one signed response.

DMTF DSP0274 1.1, sections "GET_MEASUREMENTS request message" and "MEASUREMENTS response
message"; all integers little-endian, save the signature. What is signed is everything before the
signature: the request as it was sent, then the response.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader

VERSION: Final = 0x11
REQUEST_CODE: Final = 0xE0
RESPONSE_CODE: Final = 0x60
SIGNATURE_REQUESTED: Final = 0x01
ALL_MEASUREMENTS: Final = 0xFF
DMTF_SPECIFICATION: Final = 0x01
RAW_VALUE: Final = 0x80
"""Bit 7 of a measurement's type: the value is a bit stream and no digest."""

NONCE_BYTES: Final = 32
REQUEST_BYTES: Final = 4 + NONCE_BYTES + 1
SIGNATURE_BYTES: Final = 96
"""ECDSA on P-384: r, then s, 48 bytes each, big-endian."""
MAX_SLOT: Final = 7
MAX_INDEX: Final = 0xFE
MAX_REPORT_BYTES: Final = 64 * 1024
"""Hopper and Blackwell need some 4100 bytes; the format itself allows 16 MiB."""
MAX_OPAQUE_BYTES: Final = 16 * 1024
MAX_OPAQUE_FIELDS: Final = 64

_BLOCK: Final = Struct("<BBHBH")

_CODE: Final = "malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement block (DSP0274 1.1, "Measurement block" and "DMTF measurement")."""

    index: int
    """1 to 254."""
    value_type: int
    """What was measured, without the bit for raw values: 0 ROM, 1 mutable firmware, and so on."""
    raw: bool
    """Whether `value` is a bit stream rather than a digest."""
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementsReport:
    """A request and the signed answer to it, as one piece of evidence."""

    nonce: bytes
    """The requester's: 32 bytes at offset 4."""
    slot: int
    """Certificate slot that was asked for, 0 to 7."""
    block_count: int
    record: bytes = field(repr=False)
    """The measurement blocks, one after the other, for `parse_measurements`."""
    response_nonce: bytes
    """The device's own, 32 bytes."""
    opaque: Mapping[int, bytes]
    """Opaque data as NVIDIA fills it: values by type, in order. No type occurs twice."""
    signature: bytes
    """96 bytes."""
    signed: bytes = field(repr=False)
    """Exactly the bytes that the signature covers."""


def parse_report(data: bytes) -> MeasurementsReport:
    """Decode a request of 37 bytes followed by its response, up to and including the signature.

    Every measurement must have been asked for, with a signature, and nothing may follow the
    signature. The measurements themselves are left to `parse_measurements`, so that they need
    not be touched before somebody has answered for them. Nothing is authenticated here.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise MalformedError(
            f"the SPDM report has {len(data)} bytes; at most {MAX_REPORT_BYTES} are accepted",
            code=_CODE,
        )
    reader = ByteReader(data, what="the SPDM report", code=_CODE, byteorder="little")
    nonce, slot = _request(reader)
    count, record = _response(reader, slot)
    response_nonce = reader.take(NONCE_BYTES)
    opaque = _opaque(reader.sized(limit=MAX_OPAQUE_BYTES))
    signed = data[: len(data) - reader.remaining]
    signature = reader.take(SIGNATURE_BYTES)
    reader.finish()
    return MeasurementsReport(
        nonce=nonce,
        slot=slot,
        block_count=count,
        record=record,
        response_nonce=response_nonce,
        opaque=opaque,
        signature=signature,
        signed=signed,
    )


def encode_unsigned(
    *,
    nonce: bytes,
    measurements: Iterable[Measurement],
    response_nonce: bytes,
    opaque: Mapping[int, bytes],
    slot: int = 0,
) -> bytes:
    """Write a request and its response up to the signature, which the caller appends."""
    blocks = [_encode_block(measurement) for measurement in measurements]
    record = b"".join(blocks)
    fields = b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
        for kind, value in opaque.items()
    )
    return b"".join(
        (
            bytes((VERSION, REQUEST_CODE, SIGNATURE_REQUESTED, ALL_MEASUREMENTS)),
            nonce,
            bytes((slot,)),
            bytes((VERSION, RESPONSE_CODE, 0, slot, len(blocks))),
            len(record).to_bytes(3, "little"),
            record,
            response_nonce,
            len(fields).to_bytes(2, "little"),
            fields,
        )
    )


def _encode_block(measurement: Measurement) -> bytes:
    kind = measurement.value_type | (RAW_VALUE if measurement.raw else 0)
    body = bytes((kind,)) + len(measurement.value).to_bytes(2, "little") + measurement.value
    header = bytes((measurement.index, DMTF_SPECIFICATION)) + len(body).to_bytes(2, "little")
    return header + body


def _request(reader: ByteReader) -> tuple[bytes, int]:
    if tuple(reader.take(4)) != (VERSION, REQUEST_CODE, SIGNATURE_REQUESTED, ALL_MEASUREMENTS):
        raise reader.fail("does not begin with a request for all measurements, signed")
    nonce = reader.take(NONCE_BYTES)
    slot = reader.integer(1)
    if slot > MAX_SLOT:
        raise reader.fail("names a certificate slot that does not exist")
    return nonce, slot


def _response(reader: ByteReader, slot: int) -> tuple[int, bytes]:
    if tuple(reader.take(4)) != (VERSION, RESPONSE_CODE, 0, slot):
        raise reader.fail("holds no response to its request")
    count = reader.integer(1)
    record = reader.take(reader.integer(3))
    if not count:
        raise reader.fail("holds no measurement")
    return count, record


def parse_measurements(report: MeasurementsReport) -> dict[int, Measurement]:
    """Decode a report's measurement blocks: by index, which ascend.

    Each block follows DMTF's specification, and blocks fill the record exactly.

    Raises MalformedError, and nothing else.
    """
    reader = ByteReader(
        report.record, what="the measurement record", code=_CODE, byteorder="little"
    )
    found: dict[int, Measurement] = {}
    last = 0
    for _ in range(report.block_count):
        index, specification, size, kind, length = reader.unpack(_BLOCK)
        if not last < index <= MAX_INDEX:
            raise reader.fail("is not in ascending order of indices from 1 to 254")
        if specification != DMTF_SPECIFICATION or size != length + 3:
            raise reader.fail("holds a block that is not as DMTF specifies")
        found[index] = Measurement(
            index=index,
            value_type=kind & ~RAW_VALUE,
            raw=bool(kind & RAW_VALUE),
            value=reader.take(length),
        )
        last = index
    reader.finish()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    """NVIDIA's own layout of the opaque data: type, size and value, one after the other."""
    reader = ByteReader(data, what="the opaque data", code=_CODE, byteorder="little")
    fields: dict[int, bytes] = {}
    while reader.remaining:
        kind, value = reader.integer(2), reader.sized(limit=MAX_OPAQUE_BYTES)
        if kind in fields:
            raise reader.fail(f"holds two fields of type {kind}")
        fields[kind] = value
        if len(fields) > MAX_OPAQUE_FIELDS:
            raise reader.fail(f"holds more than {MAX_OPAQUE_FIELDS} fields")
    return fields
