"""SPDM reports: exact lengths, in order, nothing left over."""

from __future__ import annotations

import pytest

from cloister.errors import MalformedError
from cloister.evidence.spdm import (
    MAX_REPORT_BYTES,
    Measurement,
    encode_unsigned,
    parse_measurements,
    parse_report,
)

NONCE = bytes(range(32))
OPAQUE = {6: b"96.00.9f.00.01", 300: b"later"}
SIGNATURE = b"\x01" * 96
RECORD = 45
"""Where the record begins: behind the request (37 bytes) and the response's header (8)."""


def block(index: int, value: bytes = b"\xaa" * 48, *, raw: bool = False) -> Measurement:
    return Measurement(index=index, value_type=1, raw=raw, value=value)


def report(*blocks: Measurement, opaque: dict[int, bytes] | None = None) -> bytes:
    unsigned = encode_unsigned(
        nonce=NONCE,
        measurements=blocks or (block(1), block(2, b"raw", raw=True), block(254)),
        response_nonce=b"\x07" * 32,
        opaque=OPAQUE if opaque is None else opaque,
        slot=3,
    )
    return unsigned + SIGNATURE


GOOD = report()


def changed(offset: int, value: int) -> bytes:
    return GOOD[:offset] + bytes((value,)) + GOOD[offset + 1 :]


def test_a_report_decodes() -> None:
    parsed = parse_report(GOOD)
    assert parsed.nonce == NONCE
    assert parsed.slot == 3
    assert parsed.response_nonce == b"\x07" * 32
    assert dict(parsed.opaque) == OPAQUE
    assert parsed.signature == SIGNATURE
    assert parsed.signed + parsed.signature == GOOD
    measurements = parse_measurements(parsed)
    assert list(measurements) == [1, 2, 254]
    assert measurements[2] == block(2, b"raw", raw=True)


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_a_report_that_ends_early_is_refused(size: int) -> None:
    with pytest.raises(MalformedError):
        parse_report(GOOD[:size])


def test_nothing_follows_the_signature() -> None:
    with pytest.raises(MalformedError, match="too many"):
        parse_report(GOOD + b"\x00")


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 0x12),  # the request's version
        (1, 0xE1),  # another request
        (2, 0x00),  # no signature asked for
        (3, 0x01),  # one measurement asked for
        (36, 8),  # a slot that does not exist
        (36, 2),  # another slot than that of the response
        (37, 0x12),  # the response's version
        (38, 0x7F),  # an error
        (39, 1),
        (40, 2),  # another slot than that of the request
        (41, 0),  # no measurement
    ],
)
def test_request_and_response_are_the_ones_expected(offset: int, value: int) -> None:
    parse_report(GOOD)
    with pytest.raises(MalformedError):
        parse_report(changed(offset, value))


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (41, 2),  # fewer blocks than there are
        (41, 4),  # more
        (RECORD, 0),  # index 0
        (RECORD, 2),  # the index of the next one
        (RECORD, 255),  # an index that stands for all of them
        (RECORD + 1, 2),  # another specification
        (RECORD + 2, 50),  # a block smaller than its value
        (RECORD + 5, 47),  # a value smaller than its block
        (RECORD + 6, 1),  # far larger
    ],
)
def test_measurement_blocks_are_exact_and_ascend(offset: int, value: int) -> None:
    parse_measurements(parse_report(GOOD))
    with pytest.raises(MalformedError):
        parse_measurements(parse_report(changed(offset, value)))


def test_slots_and_indices_end() -> None:
    last = encode_unsigned(
        nonce=NONCE, measurements=[block(254)], response_nonce=NONCE, opaque={}, slot=7
    )
    parse_measurements(parse_report(last + SIGNATURE))
    over = encode_unsigned(
        nonce=NONCE, measurements=[block(254)], response_nonce=NONCE, opaque={}, slot=8
    )
    with pytest.raises(MalformedError, match="slot"):
        parse_report(over + SIGNATURE)
    with pytest.raises(MalformedError, match="indices"):
        parse_measurements(parse_report(report(block(255))))


def test_measurements_in_another_order_are_refused() -> None:
    parse_measurements(parse_report(report(block(1), block(2))))
    with pytest.raises(MalformedError, match="ascending"):
        parse_measurements(parse_report(report(block(2), block(1))))


def opaque_report(data: bytes) -> bytes:
    unsigned = report(opaque={})[:-96]
    return unsigned[:-2] + len(data).to_bytes(2, "little") + data + SIGNATURE


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("06"),
        bytes.fromhex("0600 04"),
        bytes.fromhex("0600 0400 000000"),
        bytes.fromhex("0600 0100 00 0600 0100 01"),
        bytes.fromhex("0600 ffff 00"),
        b"".join(kind.to_bytes(2, "little") + b"\x00\x00" for kind in range(65)),
    ],
    ids=["type", "size", "short", "twice", "long", "many"],
)
def test_truncated_and_repeated_fields_are_refused(data: bytes) -> None:
    assert dict(parse_report(opaque_report(bytes.fromhex("0600 0100 00"))).opaque) == {6: b"\x00"}
    with pytest.raises(MalformedError):
        parse_report(opaque_report(data))


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedError, match="at most"):
        parse_report(bytes(MAX_REPORT_BYTES + 1))
