"""CBOR: what is refused, each beside what is accepted."""

from __future__ import annotations

import tracemalloc

import cbor2
import pytest

from cloister.errors import MalformedError
from cloister.evidence.cbor import Cbor, parse_cbor, parse_cbor_first

LIMIT = 1024


def parse(data: bytes, *, indefinite: bool = False, depth: int = 3) -> Cbor:
    return parse_cbor(data, limit=LIMIT, depth=depth, what="it", code="bad", indefinite=indefinite)


def refused(data: bytes, *, indefinite: bool = False) -> str:
    with pytest.raises(MalformedError) as caught:
        parse(data, indefinite=indefinite)
    assert caught.value.code == "bad"
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 23, 24, -35, 2**64 - 1, -(2**64)),
        *(b"", b"x" * 300, "", "é", [], {}),
        [1, [2, [3]]],
        {"a": {1: b"x"}, 2: None},
    ],
)
def test_there_and_back(value: object) -> None:
    assert parse(cbor2.dumps(value)) == value


def test_longer_integers_are_accepted() -> None:
    assert parse(b"\x18\x01") == 1


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("01", "0100"),  # a byte too many
        ("01", ""),
        ("420102", "4201"),  # a byte too few
        ("62c3a9", "62ffff"),  # no UTF-8
        ("a201010202", "a201010102"),  # a key twice
        ("a201010202", "a20101180102"),  # the same, in more bytes
        ("a10101", "a1f501"),  # a key that is a truth value,
        ("a10101", "a1410101"),  # a byte string,
        ("a10101", "a1f601"),  # or nothing
        ("80", "d280"),  # tags: one unknown to the library,
        ("4101", "c24101"),  # a big number,
        ("626161", "d823626161"),  # a regular expression,
        ("8100", "d81c81d81d00"),  # a list that holds itself,
        ("01", "d9d9f701"),  # and "this is CBOR"
        ("00", "f90000"),  # floating point
        ("f6", "f7"),  # undefined
        ("f6", "f820"),  # unassigned
        ("00", "1c"),
        ("00", "ff"),
    ],
)
def test_refused(good: str, bad: str) -> None:
    parse(bytes.fromhex(good))
    refused(bytes.fromhex(bad))


def test_indefinite_lengths_only_where_allowed() -> None:
    for data in ("bf0102ff", "9f01ff", "5f4101ff", "7f6161ff"):
        assert parse(bytes.fromhex(data), indefinite=True)
        refused(bytes.fromhex(data))
    refused(bytes.fromhex("bf01010102ff"), indefinite=True)
    refused(bytes.fromhex("bf01ff"), indefinite=True)


def test_depth() -> None:
    assert parse(b"\x81" * 3 + b"\x00") == [[[0]]]
    refused(b"\x81" * 4 + b"\x00")
    refused(b"\x81" * LIMIT)
    refused(b"\x9f" * LIMIT, indefinite=True)


def test_size() -> None:
    good = b"\x59" + (LIMIT - 3).to_bytes(2, "big") + bytes(LIMIT - 3)
    assert parse(good) == bytes(LIMIT - 3)
    assert "1025 bytes" in refused(b"\x59" + (LIMIT - 2).to_bytes(2, "big") + bytes(LIMIT - 2))


@pytest.mark.parametrize("head", ["5b", "7b", "9b", "bb"])
@pytest.mark.parametrize("length", ["00000000ffffffff", "ffffffffffffffff", "0000000010000000"])
def test_a_declared_length_allocates_nothing(head: str, length: str) -> None:
    tracemalloc.start()
    refused(bytes.fromhex(head + length) + b"\x00")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 512 * 1024


def test_the_decoders_words_go_no_further() -> None:
    assert refused(bytes.fromhex("a266736563726574016673656372657402")) == "it is not strict CBOR"


def test_the_first_item_of_more() -> None:
    data = cbor2.dumps({"a": b"x"})
    assert parse_cbor_first(data, limit=99, depth=3, what="it") == ({"a": b"x"}, len(data))
    for behind in (b"\xff" * 20, b"\0", data):
        found = parse_cbor_first(data + behind, limit=99, depth=3, what="it")
        assert found == ({"a": b"x"}, len(data))
        refused(data + behind)
    for bad in (b"", b"\xff", data[:-1], b"\xc1" + data):
        with pytest.raises(MalformedError):
            parse_cbor_first(bad, limit=99, depth=3, what="it")
    with pytest.raises(MalformedError):
        parse_cbor_first(data + bytes(99), limit=99, depth=3, what="it")
