"""Register values beside a quote."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from cloister.errors import MalformedError
from cloister.evidence.pcrs import (
    MAX_PCRS_BYTES,
    checked_values,
    parse_pcrs_file,
    parse_pcrs_json,
)
from cloister.evidence.tpm import Alg

ZERO, ONE = bytes(32), b"\1" * 32
SHA256, SHA384 = int(Alg.SHA256), int(Alg.SHA384)


def selection(bank: int, bitmap: int, *, size: int = 3, padding: int = 0) -> bytes:
    return struct.pack("<HBIB", bank, size, bitmap, padding)


def digests(values: Sequence[bytes], *, count: int | None = None) -> bytes:
    slots = [struct.pack("<H", len(value)) + value.ljust(64, b"\0") for value in values]
    slots += [bytes(66)] * (8 - len(slots))
    return struct.pack("<I", len(values) if count is None else count) + b"".join(slots)


def dump(selections: Sequence[bytes], lists: Sequence[bytes], *, count: int | None = None) -> bytes:
    head = struct.pack("<I", len(selections) if count is None else count)
    slots = b"".join([*selections, *([bytes(8)] * (16 - len(selections)))])
    return head + slots + struct.pack("<I", len(lists)) + b"".join(lists)


GOOD = dump([selection(SHA256, 0b11)], [digests([ZERO, ONE])])


def test_a_file_of_tpm2_tools() -> None:
    assert len(GOOD) == 668
    assert parse_pcrs_file(GOOD) == {SHA256: {0: ZERO, 1: ONE}}


def test_values_follow_the_selection_through_banks_and_lists() -> None:
    first = [bytes([number]) * 32 for number in range(8)]
    data = dump(
        [selection(SHA256, 0x3FF), selection(SHA384, 1 << 23)],
        [digests(first), digests([ZERO, ONE, b"\2" * 48])],
    )
    assert len(data) == 1200
    values = parse_pcrs_file(data)
    assert values[SHA256] == dict(enumerate([*first, ZERO, ONE]))
    assert values[SHA384] == {23: b"\2" * 48}


@pytest.mark.parametrize(
    "data",
    [
        GOOD + b"\0",
        GOOD[:-1],
        b"",
        GOOD.ljust(MAX_PCRS_BYTES + 1, b"\0"),
        dump([selection(SHA256, 0b11)], [digests([ZERO])]),
        dump([selection(SHA256, 0b1)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11)], [digests([ZERO, ONE], count=1)]),
        dump([selection(SHA256, 0b11)], [digests([ZERO, ONE], count=9)]),
        dump([selection(SHA256, 0b1), selection(SHA256, 0b1)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11, padding=1)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11, size=0)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11, size=5)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 1 | 1 << 24, size=4)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11)], [digests([ZERO, ONE])], count=0),
        dump([selection(SHA256, 0b11)], [digests([ZERO, ONE])], count=17),
        dump([selection(Alg.SM3_256, 0b11)], [digests([ZERO, ONE])]),
        dump([selection(SHA384, 0b11)], [digests([ZERO, ONE])]),
        dump([selection(SHA256, 0b11)], [digests([ZERO, ONE])] + [digests([])] * 48),
        dump([selection(SHA256, 0xFF)], [digests([ZERO] * 8, count=9)]),
        GOOD[:272] + b"\x20\0" + GOOD[274:],  # a size in a slot that is not used
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_pcrs_file(data)
    assert caught.value.code == "pcrs_malformed"


def test_bytes_behind_a_short_digest_are_refused() -> None:
    changed = bytearray(GOOD)
    changed[140 + 2 + 40] = 1  # inside the first slot of 64, behind its 32 bytes
    with pytest.raises(MalformedError):
        parse_pcrs_file(bytes(changed))


def test_json_in_any_order() -> None:
    data = b'{"sha256": {"10": "%s", "2": "%s"}}' % (ZERO.hex().encode(), ONE.hex().encode())
    assert parse_pcrs_json(data) == {SHA256: {10: ZERO, 2: ONE}}


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{",
        b'{"sha256": []}',
        b'{"sha256": {"0": 1}}',
        b'{"sha256": {"0": "00"}}',
        b'{"md5": {}}',
        b'{"sha256": {"00": "%s"}}' % ZERO.hex().encode(),
        b'{"sha256": {"-1": "%s"}}' % ZERO.hex().encode(),
        b'{"sha256": {"24": "%s"}}' % ZERO.hex().encode(),
        b'{"sha256": {"0": "%s", "0": "%s"}}' % (ZERO.hex().encode(), ZERO.hex().encode()),
        b'{"sha256": {"0": "%s"}}' % ("AB" * 32).encode(),
    ],
)
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_pcrs_json(data)
    assert caught.value.code == "pcrs_malformed"


@pytest.mark.parametrize(
    "values", [{SHA256: {24: ZERO}}, {SHA256: {-1: ZERO}}, {SHA256: {0: b""}}, {0: {}}]
)
def test_values_of_registers_that_do_not_exist(values: dict[int, dict[int, bytes]]) -> None:
    assert checked_values({SHA256: {23: ZERO}}) == {SHA256: {23: ZERO}}
    with pytest.raises(MalformedError):
        checked_values(values)


def test_an_empty_slot_is_not_counted() -> None:
    """The same registers, and a count that takes in a slot of zeros."""
    parse_pcrs_file(GOOD)
    count = int.from_bytes(GOOD[:4], "little") + 1
    with pytest.raises(MalformedError, match="how many registers"):
        parse_pcrs_file(count.to_bytes(4, "little") + GOOD[4:])
